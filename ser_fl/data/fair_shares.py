"""Shares of each speaker's recordings for the parts of a split, such that no part lacks an emotion that it could have.

Evenly spaced places in a speaker's recordings, sorted by emotion, are fair to one speaker. Over speakers with few
recordings they drop emotions: each of seven emotions once gives everybody's fourth. So speakers exchange recordings
between the parts, by counts alone, which nodes may tell. Corpora that lack nothing are split as without exchanges.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence


def places(emotions: Sequence[str], fraction: float, swaps: Iterable[tuple[str, str]] = ()) -> list[int]:
    """Places of a share of a speaker's recordings, which are in the order of their emotions: evenly spaced. Of each
    swap the last of one emotion is given back, and the first of another taken for it.
    """
    count = round(fraction * len(emotions))
    drawn = [int((k + 0.5) * len(emotions) / count) for k in range(count)]
    for given, taken in swaps:
        drawn.remove(max(place for place in drawn if emotions[place] == given))
        drawn.append(next(p for p, emotion in enumerate(emotions) if emotion == taken and p not in drawn))
    return drawn


def exchanges(
    held: Mapping[str, Mapping[str, int]], fractions: Mapping[str, float]
) -> Iterator[tuple[str, str, str, str]]:
    """What speakers exchange between training and another part, so that over all speakers every part has every emotion:
    two recordings train and test, three validate too. Speakers' shares stay as they are.

    Args:
        held: recordings of each emotion, by speaker.
        fractions: the parts' share of each speaker's recordings, of what the parts before left: test, validation.

    Returns:
        Of each exchange the part, the speaker, the emotion given back and the one taken.
    """
    rest = {speaker: Counter(emotions) for speaker, emotions in held.items()}
    for kept, (part, fraction) in zip(range(len(fractions), 0, -1), fractions.items(), strict=True):
        in_order = {speaker: sorted(own.elements()) for speaker, own in rest.items()}
        drawn = {speaker: Counter(own[place] for place in places(own, fraction)) for speaker, own in in_order.items()}
        held_by_all = Counter(emotion for own in in_order.values() for emotion in own)
        least = {emotion: min(1, count - 1) for emotion, count in held_by_all.items()}
        most = {emotion: max(count - kept, least[emotion]) for emotion, count in held_by_all.items()}
        of_part = Counter[str]()
        for counts in drawn.values():
            of_part.update(counts)
        for emotion in sorted(least, key=lambda emotion: (held_by_all[emotion], emotion)):
            while path := _path(emotion, rest, drawn, of_part, least, most):
                for speaker, given, taken in path:
                    for counts in (drawn[speaker], of_part):
                        counts[given] -= 1
                        counts[taken] += 1
                    yield part, speaker, given, taken
        rest = {speaker: own - drawn[speaker] for speaker, own in rest.items()}


def _path(
    emotion: str,
    held: Mapping[str, Counter[str]],
    drawn: Mapping[str, Counter[str]],
    of_part: Counter[str],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> list[tuple[str, str, str]]:
    """The fewest exchanges that bring one emotion of a part between its bounds and no other out of them: an augmenting
    path of a flow. Empty where nothing is wrong, and where nothing can be done.
    """
    if of_part[emotion] < least[emotion]:
        starts, ends = [name for name in sorted(least) if of_part[name] > least[name]], {emotion}
    elif of_part[emotion] > most[emotion]:
        starts, ends = [emotion], {name for name in most if of_part[name] < most[name]}
    else:
        return []
    reached: dict[str, tuple[str, str] | None] = dict.fromkeys(starts)
    queue = list(starts)
    for given in queue:
        if given in ends:
            path, step = list[tuple[str, str, str]](), reached[given]
            while step is not None:
                speaker, before = step
                path.append((speaker, before, given))
                given, step = before, reached[before]
            return path[::-1]
        for speaker in sorted(held):
            if drawn[speaker][given] > 0:
                for taken in sorted(held[speaker]):
                    if taken not in reached and held[speaker][taken] > drawn[speaker][taken]:
                        reached[taken] = (speaker, given)
                        queue.append(taken)
    return []
