"""What the benchmark doubts of itself, in words: what a failed check means, for the page and the terminal."""

from collections.abc import Iterator

from ser_fl.robustness.sanity_checks.report import SanityReport

MEANINGS = {
    "at epsilon 0 the scores are the clean ones": "clean and attacked scores cannot be compared",
    "an attack does not raise UAR": "that attack works for the model, and its figures say nothing of robustness",
    "UAR falls as the budget grows": "the attack searches the larger budget badly, and robust UAR there is too high",
    "many steps beat one": "the iterated attack is too weak, or gradients mislead it: robust UAR is too high",
    "the white box beats the black box": "gradients are masked: robust UAR under attacks by gradients is too high",
    "attacks beat noise": "the attack is weaker than chance changes, and robust UAR is too high",
    "every defence is attacked by one who knows of it": "the defended figures are no evidence of robustness",
    "passes buy successes": "the attack may not work at all, and what it leaves says nothing",
    "clean UAR is plausible": "the model may know the test part from training",
    "the model answers the same question alike": "attacks met single draws of a random model: robust UAR is too high",
    "epsilon 0 changes nothing": "clean and attacked utterances are not prepared alike, and no figure can be compared",
    "gradients reach the input": "attacks by gradients are blind there, and robust UAR is too high",
    "twice the steps change nothing": "the attack has not converged: robust UAR is an upper bound",
    "twice the restarts change nothing": "the attack is luck of its starts: robust UAR is an upper bound",
    "nothing weaker breaks what is left": "the strong attack misses what a weak one finds: robust UAR is too high",
    "a huge epsilon reaches chance": "gradients are masked or the attack is broken: no robust UAR here can be believed",
    "saved adversarials give the same result": "the figures depend on batches or memory, and nobody can check them",
    "poison without a budget changes nothing": "clean and poisoned enrolment cannot be compared",
    "twice the steps of poison change nothing": "poison has not converged: UAR under it is an upper bound",
}
"""By the name of the check."""


def meaning(check: str) -> str:
    """What it means where a check fails; of one that a later version made, that figures are in doubt."""
    return MEANINGS.get(check, "figures of this benchmark are in doubt")


def failures_in_words(found: SanityReport) -> Iterator[str]:
    """A line for each check that fails or hints: what that means."""
    for check in found.failed:
        yield f"fails: {check}: {meaning(check)}"
    for check in found.hinted:
        yield f"hint: {check}: perhaps {meaning(check)}"
