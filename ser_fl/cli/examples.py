"""What every ``--help`` ends with: two command lines to begin with, and the groups of settings where there are some."""

from textwrap import fill

_NEMO = "data=nemo data.root=nEMO"
EXAMPLES = {
    "": ("ser-fl demo", f"ser-fl train experiment=nemo_fl {_NEMO}"),
    "demo": ("ser-fl demo", "ser-fl demo --output runs/first"),
    "train": (
        f"ser-fl train experiment=nemo_fl {_NEMO}",
        "ser-fl train -m seed=1,2,3 objective=clean,pgd data=builtin",
    ),
    "crossval": (
        f"ser-fl crossval experiment=strangers {_NEMO} split=speaker_independent",
        "ser-fl crossval data=builtin split=speaker_independent attacks=[pgd] epsilons=[0.05]",
    ),
    "benchmark": (
        "ser-fl benchmark run=RUN attacks=[fgsm,pgd] epsilons=[0.05]",
        "ser-fl benchmark run=RUN attacks=[standard] adaptive=[pgd] max_examples=200",
    ),
    "evaluate": ("ser-fl evaluate run=RUN", "ser-fl evaluate run=RUN data=ravdess data.root=RAVDESS"),
    "baseline": ("ser-fl baseline run=RUN", f"ser-fl baseline {_NEMO} features=opensmile"),
    "transfer": (
        "ser-fl transfer RUN OTHER_RUN attack=pgd",
        "ser-fl transfer RUN OTHER_RUN epsilon=0.1 defences=[none]",
    ),
    "report": ("ser-fl report RUN", "ser-fl report runs/study --markdown"),
    "predict": (
        "ser-fl predict a.wav speech/ --run zoo:nemo_fl_best",
        "ser-fl predict speech/ --run RUN --format csv --segment 3",
    ),
    "export": ("ser-fl export RUN onnx", "ser-fl export zoo:nemo_fl_best hf output=exports/nemo"),
    "serve": ("ser-fl serve zoo:nemo_fl_best", "ser-fl serve RUN port=0"),
    "leaderboard": ("ser-fl leaderboard", "ser-fl leaderboard add RUN ENTRY authors=NAME data.root=DIR"),
    "verify": ("ser-fl verify ENTRY data.root=DIR", "ser-fl verify ENTRY data.root=DIR max_examples=50"),
    "zoo": ("ser-fl zoo", "ser-fl zoo nemo_fl_best"),
    "corpus": ("ser-fl corpus list", "ser-fl corpus check nemo nEMO"),
    "federation": (
        "ser-fl federation keys KEYS --host link.example.org --nodes site0,site1",
        "ser-fl federation node KEYS site0 --link link.example.org:9092 --data CORPUS",
    ),
}


def epilog(command: str) -> str:
    """Ends the help of a command."""
    lines = ["examples:", *(f"  {example}" for example in EXAMPLES.get(command, ()))]
    if command in ("train", "crossval"):
        from ser_fl.config.groups import groups

        lines += ["", "groups of settings, each with the names that it may be given:"]
        for group, names in groups().items():
            line = f"{group}={' | '.join(names)}"
            lines.append(fill(line, 78, initial_indent="  ", subsequent_indent="      "))
        lines += ["", "any single setting: group.setting=value; --cfg job prints them all"]
    return "\n".join(lines)
