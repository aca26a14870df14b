"""Linear and kernel classifiers of features: fitted by scikit-learn, kept as tensors, applied by torch.

All in float64 on the CPU: features are few, and results are scikit-learn's to the last digits.
"""

import torch

Tensors = dict[str, torch.Tensor]


def weighted_rows(
    targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images with class probabilities as images of one class: (row, label, weight) of every pair that counts.

    `targets` are [N, M], `weights` [N]; 0.75 a and 0.25 b counts as both, with these shares of its weight.
    """
    shares = targets.double() * weights.double()[:, None]
    rows, labels = torch.nonzero(shares, as_tuple=True)
    return rows, labels, shares[rows, labels]


def fit_logistic(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, c: float) -> Tensors:
    """Multinomial logistic regression with penalty ||w||^2 / 2 + C * loss; features [N, D], labels [N]."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - seconds, and loading needs none

    model = LogisticRegression(C=c, max_iter=10_000).fit(x.numpy(), y.numpy(), weight.numpy())
    slopes, offsets = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(model.classes_) == 2:  # one function, of the second class against the first
        slopes, offsets = (torch.cat([torch.zeros_like(t), t]) for t in (slopes, offsets))
    return {"classes": torch.from_numpy(model.classes_), "slopes": slopes, "offsets": offsets}


def logistic_scores(head: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, number of classes that were seen]."""
    return x @ head["slopes"].T + head["offsets"]


def fit_svc(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, c: float, kernel: str) -> Tensors:
    """A support vector machine for every pair of classes (libsvm's C-SVC), gamma = 1 / (D Var x)."""
    from sklearn.svm import SVC  # noqa: PLC0415 - as above

    model = SVC(C=c, kernel=kernel, gamma="scale").fit(x.numpy(), y.numpy(), weight.numpy())
    sign = -1.0 if len(model.classes_) == 2 else 1.0  # scikit-learn turns the sign round for two classes
    return {
        "classes": torch.from_numpy(model.classes_),
        "support_vectors": torch.from_numpy(model.support_vectors_),
        "num_support": torch.from_numpy(model.n_support_).long(),
        "dual": sign * torch.from_numpy(model.dual_coef_),
        "offsets": sign * torch.from_numpy(model.intercept_),
        "gamma": torch.tensor(model._gamma, dtype=torch.float64),
    }


def svc_scores(head: Tensors, x: torch.Tensor, kernel: str) -> torch.Tensor:
    """scikit-learn's decision function of "one against the rest": votes of all pairs of classes, plus less
    than one third for how sure the pairs are; [B, number of classes that were seen].
    """
    vectors = head["support_vectors"]
    if kernel == "linear":
        similarity = x @ vectors.T
    else:
        similarity = torch.exp(-head["gamma"] * torch.cdist(x, vectors).square())
    decisions = pair_decisions(similarity, head)
    n = len(head["classes"])
    first, second = torch.triu_indices(n, n, 1)
    for_first = (decisions > 0).double()
    ones = torch.eye(n, dtype=torch.float64)
    votes = for_first @ ones[first] + (1 - for_first) @ ones[second]
    sums = decisions @ (ones[first] - ones[second])
    return votes + sums / (3 * (sums.abs() + 1))


def pair_decisions(similarity: torch.Tensor, head: Tensors) -> torch.Tensor:
    """Positive for the first of each pair of classes: kernel values [B, S] -> [B, pairs].

    Support vectors lie in order of class. Their coefficients against class j are row j of `dual`, or row
    j - 1 if their own class comes before j.
    """
    ends = head["num_support"].cumsum(0).tolist()
    members = [slice(end - n, end) for n, end in zip(head["num_support"].tolist(), ends, strict=True)]
    dual = head["dual"]
    found = [
        similarity[:, members[i]] @ dual[j - 1, members[i]] + similarity[:, members[j]] @ dual[i, members[j]]
        for i in range(len(members))
        for j in range(i + 1, len(members))
    ]
    return torch.stack(found, 1) + head["offsets"]
