"""Corpora that tell speaker and emotion in their file names: a pattern each. A new one goes here, or into `tables`."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, balanced_counts, counts, pairs
from ser_fl.data.utterance import Utterance, plain


def named_files(
    pattern: str,
    *,
    sex: Callable[[str], str | None],
    speaker: Callable[[str], str] = str,
    code: Callable[[str], str] = str,
    text: Callable[[str], str] = str,
) -> Callable[[Path], Iterator[Utterance]]:
    """A reader of WAV and FLAC files whose names follow a scheme, in any folder and any case.

    ``pattern`` is a regular expression of the whole name without its ending. Its groups ``speaker``, ``code`` (the
    emotion) and, where there is one, ``text`` are used, in lower case, each through the function of its name; all named
    groups together tell one utterance from another. ``sex`` is of a speaker.
    """
    scheme = re.compile(pattern, re.IGNORECASE)

    def find(root: Path) -> Iterator[Utterance]:
        for path in audio_files(root):
            if match := scheme.fullmatch(plain(path.stem)):
                parts = {name: part.lower() for name, part in match.groupdict("").items()}
                parts["speaker"], parts["code"] = speaker(parts["speaker"]), code(parts["code"])
                yield Utterance(
                    path=path,
                    utterance_id="_".join(parts.values()),
                    emotion=parts["code"],
                    speaker=parts["speaker"],
                    sex=sex(parts["speaker"]),
                    text=text(parts["text"]) if "text" in parts else None,
                )

    return find


# CREMA-D: English, 91 actors, twelve sentences, six emotions; Cao et al., IEEE TAC 2014. Actor, sentence, emotion,
# level. The emotion is the acted one, not the raters'. One published name ends in X instead of XX (1040_ITH_SAD_X).
# 1076_MTI_SAD_XX is silent as published.
_ACTRESSES = (
    "02 03 04 06 07 08 09 10 12 13 18 20 21 24 25 28 29 30 37 43 46 47 49 52 53 54 55 56 58 60 61 63 72 73 74 75 76 78 "
    "79 82 84 89 91"
)
"""The 43, by the last two digits of their ids; from the corpus's VideoDemographics.csv."""
CREMAD = CorpusInfo(
    name="cremad",
    title="CREMA-D",
    licence="ODbL 1.0 (database), DbCL 1.0 (contents)",
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    label_map=pairs("ANG=anger DIS=disgust FEA=fear HAP=happiness NEU=neutral SAD=sadness"),
    example="names such as 1001_DFA_ANG_XX.wav",
    find=named_files(
        r"(?P<speaker>10(?:0[1-9]|[1-8]\d|9[01]))_(?P<text>[A-Z]{3})_(?P<code>ANG|DIS|FEA|HAP|NEU|SAD)"
        r"_(?P<level>LO|MD|HI|XX?)",
        sex=lambda speaker: "female" if speaker[2:] in _ACTRESSES.split() else "male",
        text=str.upper,
    ),
    published_counts=PublishedCounts(
        num_utterances=7442,
        num_speakers=91,
        per_emotion=counts("anger=1271 disgust=1271 fear=1271 happiness=1271 neutral=1087 sadness=1271"),
    ),
)

# EmoDB (Berlin): German, ten actors, ten sentences, seven emotions; Burkhardt et al., Interspeech 2005. Speaker,
# sentence, emotion (first letter of the German word), version.
EMODB = CorpusInfo(
    name="emodb",
    title="EmoDB",
    licence="CC0-1.0 (as distributed through audb)",
    url="http://emodb.bilderbar.info",
    label_map=pairs("W=anger L=boredom E=disgust A=fear F=happiness T=sadness N=neutral"),
    example="names such as 03a04Wc.wav",
    find=named_files(
        r"(?P<speaker>03|08|09|1[0-6])(?P<text>[ab]\d\d)(?P<code>[WLEAFTN])(?P<version>[a-z]?)",
        sex=lambda speaker: "male" if speaker in ("03", "10", "11", "12", "15") else "female",
    ),
    published_counts=PublishedCounts(
        num_utterances=535,
        num_speakers=10,
        per_emotion=counts("anger=127 boredom=81 disgust=46 fear=69 happiness=71 neutral=79 sadness=62"),
        per_speaker=counts("03=49 08=58 09=43 10=38 11=55 12=35 13=61 14=69 15=56 16=71"),
    ),
)

# EMOVO: Italian, six actors, fourteen sentences, seven emotions; Costantini et al., LREC 2014. Emotion, speaker,
# sentence. The files are 48 kHz stereo from two spaced microphones, see `ser_fl.data.audio.CHANNELS`.
ITALIAN_LABELS = pairs("neu=neutral dis=disgust gio=happiness pau=fear rab=anger sor=surprise tri=sadness")
EMOVO = CorpusInfo(
    name="emovo",
    title="EMOVO",
    licence="free for research, see the site",
    url="http://voice.fub.it/activities/corpora/emovo/index.html",
    label_map=ITALIAN_LABELS,
    example="names such as dis-f1-b1.wav",
    find=named_files(
        r"(?P<code>neu|dis|gio|pau|rab|sor|tri)[-_](?P<speaker>[fm][123])[-_](?P<text>[a-z]\d)",
        sex=lambda speaker: "female" if speaker.startswith("f") else "male",
    ),
    published_counts=balanced_counts(
        ["f1", "f2", "f3", "m1", "m2", "m3"], dict.fromkeys(sorted(ITALIAN_LABELS.values()), 14)
    ),
)

# RAVDESS, speech: English, 24 actors, two sentences, eight emotions; Livingstone and Russo, PLOS ONE 2018. Modality (03
# audio only), channel (01 speech, 02 song), emotion, intensity, statement, repetition, actor (odd: male). Song, video
# and audio-video files are left out.
_STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
RAVDESS = CorpusInfo(
    name="ravdess",
    title="RAVDESS",
    licence="CC BY-NC-SA 4.0",
    url="https://zenodo.org/records/1188976",
    label_map=pairs("01=neutral 02=calm 03=happiness 04=sadness 05=anger 06=fear 07=disgust 08=surprise"),
    example="speech names such as 03-01-06-01-02-01-12.wav",
    find=named_files(
        r"03-01-(?P<code>0[1-8])-(?P<intensity>0[12])-(?P<text>0[12])-(?P<repetition>0[12])"
        r"-(?P<speaker>0[1-9]|1\d|2[0-4])",
        sex=lambda speaker: "male" if int(speaker) % 2 else "female",
        text=_STATEMENTS.__getitem__,
    ),
    # Two statements, two repetitions, two intensities; neutral has the normal intensity only.
    published_counts=balanced_counts(
        [f"{actor:02d}" for actor in range(1, 25)],
        counts("anger=8 calm=8 disgust=8 fear=8 happiness=8 neutral=4 sadness=8 surprise=8"),
    ),
)

# SAVEE: English, four men, seven emotions; Haq and Jackson, AVSP 2009. DC/a01.wav as published, DC_a01.wav in flat
# copies: speaker, emotion (one or two letters), sentence.
_SAVEE_SPEAKERS = ("DC", "JE", "JK", "KL")


def _find_savee(root: Path) -> Iterator[Utterance]:
    """Utterances whose speaker is told by the name or by a folder above, the nearest first."""
    scheme = re.compile(r"(?:(DC|JE|JK|KL)[-_]?)?((sa|su|[adfhn])\d\d)", re.IGNORECASE)
    for path in audio_files(root):
        if match := scheme.fullmatch(plain(path.stem)):
            folders = path.relative_to(root).parent.parts
            names = [plain(name).upper() for name in (match[1] or "", *reversed(folders), root.resolve().name)]
            if speakers := [name for name in names if name in _SAVEE_SPEAKERS]:
                name, text = f"{speakers[0]}_{match[2].lower()}", match[2].lower()
                yield Utterance(
                    utterance_id=name, emotion=match[3], speaker=speakers[0], path=path, sex="male", text=text
                )


SAVEE = CorpusInfo(
    name="savee",
    title="SAVEE",
    licence="free for research, on registration",
    url="http://kahlan.eps.surrey.ac.uk/savee/",
    label_map=pairs("a=anger d=disgust f=fear h=happiness n=neutral sa=sadness su=surprise"),
    example="DC/a01.wav or DC_a01.wav",
    find=_find_savee,
    published_counts=balanced_counts(
        _SAVEE_SPEAKERS, counts("anger=15 disgust=15 fear=15 happiness=15 neutral=30 sadness=15 surprise=15")
    ),
)

# TESS: English, two actresses, 200 words, seven emotions; Pichora-Fuller and Dupuis, 2020. Speaker (older or younger),
# word, emotion; "ps" is pleasant surprise. A few published names say OA for OAF. Public copies often hold the whole
# corpus twice, one folder inside the other.
TESS = CorpusInfo(
    name="tess",
    title="TESS",
    licence="CC BY-NC-ND 4.0",
    url="https://doi.org/10.5683/SP2/E8H2MF",
    label_map=pairs("angry=anger disgust=disgust fear=fear happy=happiness neutral=neutral ps=surprise sad=sadness"),
    example="names such as OAF_back_angry.wav",
    find=named_files(
        r"(?P<speaker>OA|YA)F?_(?P<text>.+?)_"
        r"(?P<code>angry|disgust|fear|happy|neutral|sad|ps|(?:pleasant_)?surprised?)",
        sex=lambda speaker: "female",
        speaker=lambda initials: f"{initials.upper()}F",
        code=lambda code: "ps" if "surprise" in code else code,
    ),
    published_counts=balanced_counts(
        ["OAF", "YAF"], counts("anger=200 disgust=200 fear=200 happiness=200 neutral=200 sadness=200 surprise=200")
    ),
)
