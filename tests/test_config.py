"""Settings: the YAML groups and the schema agree, and what is wrong is told in one line that names the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from packaging.version import Version

from ser_fl.config import robustness as attack_config
from ser_fl.config import training
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.frontend import GE2EConfig, TransformersConfig
from ser_fl.config.groups import configs_dir, groups
from ser_fl.config.schema import Config, dump, instantiated_objects, parse
from ser_fl.config.values import ObjectConfig
from ser_fl.errors import UserError

ROOT = "data.root=corpus"
STAGES = [field.name for field in fields(Config) if field.name in groups() and field.name != "experiment"]
CHOICES = {stage: [name for name in names if name != "own"] for stage, names in groups().items()}


@cache
def defaults() -> Config:
    return compose()


def changed(key: str, value: object) -> dict[str, Any]:
    """The defaults with one setting changed, as a plain mapping."""
    settings = deepcopy(dump(defaults()))
    *path, name = key.split(".")
    node = settings
    for part in path:
        node = node[part]
    node[name] = value
    return settings


def test_defaults_parse_and_need_no_files() -> None:
    assert (defaults().data.name, defaults().data.root) == ("builtin", None)
    assert (defaults().model.name, defaults().split.name) == ("crnn", "within_speaker")
    assert defaults().frontend.num_frames == 186


@pytest.mark.parametrize("model", sorted(set(groups()["model"]) - {"own"}))
def test_dump_and_parse_are_inverse(model: str) -> None:
    config = compose([f"model={model}", "split=speaker_independent", "split.test_speakers=[a,b]", "objective=pgd"])
    assert parse(dump(config)) == config
    assert parse(yaml.safe_load(yaml.safe_dump(dump(config)))) == config


def test_parsing_leaves_the_given_mapping_alone() -> None:
    settings = dump(defaults())
    before = deepcopy(settings)
    parse(settings)
    assert settings == before


def test_every_stage_has_a_group_and_every_group_a_stage() -> None:
    stages = {field.name for field in fields(Config) if is_dataclass(getattr(defaults(), field.name))}
    assert set(groups()) == {*stages, "experiment"}


@pytest.mark.parametrize(
    "names", list(zip_longest(*(CHOICES[stage] for stage in STAGES))), ids=lambda names: str(names[0])
)
def test_every_file_of_every_group_composes(names: tuple[str | None, ...]) -> None:
    """Several groups at a time; a file's settings are what its group then holds."""
    chosen = {stage: name for stage, name in zip(STAGES, names, strict=True) if name is not None}
    if chosen.get("executor") == "flower":  # which goes with clients that have data of their own
        check_group_files({"executor": chosen.pop("executor")})
    if chosen.get("frontend") == "transformers":  # which needs an encoder
        form = "kind:wavlm,num_layers:13,size:768,sample_rate_hz:16000,window_samples:400,hop_samples:320"
        encoder = f"frontend.encoder={{{form},longest_samples:null,digest:abc}}"
        check_group_files({"frontend": chosen.pop("frontend")}, encoder, "augmentation=none")
    check_group_files(chosen)


@pytest.mark.parametrize("setting", ["superlink=a:1", "root_certificates=ca.crt", "num_nodes=2", "client_gpus=1"])
def test_settings_of_flower_are_refused_by_other_executors(setting: str) -> None:
    with pytest.raises(UserError, match=r"executor\.\w+ goes with executor=flower, got .* with serial") as caught:
        compose(["executor=serial", f"executor.{setting}"])
    assert "\n" not in str(caught.value)


def part_of(said: Any, held: Any) -> bool:
    """Whether a mapping, and every one in it, holds all that a file says."""
    if isinstance(said, dict):
        return all(part_of(value, held[key]) for key, value in said.items())
    return bool(said == held)


def check_group_files(chosen: dict[str, str], *more: str) -> None:
    config = compose([*(f"{stage}={name}" for stage, name in chosen.items()), ROOT, *more])
    for stage, name in chosen.items():
        own = yaml.safe_load((configs_dir() / stage / f"{name}.yaml").read_text(encoding="utf-8"))
        own.pop("defaults", None)
        composed = dump(config)[stage]
        settled = {"root", "num_features", "deviation", "encoder"}
        assert part_of({key: own[key] for key in own.keys() - settled}, composed)
        assert composed.get("name", name) in (name, name.partition("_")[0], own.get("name"))


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes_under_its_own_name(experiment: str) -> None:
    config = compose([f"experiment={experiment}", ROOT])
    assert config.experiment == experiment
    assert config.data.name == ("nemo" if experiment.startswith("nemo") else "builtin")


def test_experiments_differ_by_their_objective_alone() -> None:
    """What is compared is the recipe: clean, FGSM and PGD share every other setting."""
    plain = [dump(compose([f"experiment={name}", ROOT])) for name in ("nemo_fl", "nemo_fl_fgsm", "nemo_fl_pgd")]
    assert [settings.pop("objective")["name"] for settings in plain] == ["clean", "fgsm", "pgd"]
    assert [settings.pop("experiment") for settings in plain] == ["nemo_fl", "nemo_fl_fgsm", "nemo_fl_pgd"]
    assert plain[0] == plain[1] == plain[2]


def test_the_command_line_wins_over_the_experiment() -> None:
    config = compose(["experiment=debug", "data=nemo", ROOT, "federation.num_rounds=7", "seed=5"])
    assert (config.data.name, config.federation.num_rounds, config.seed) == ("nemo", 7, 5)
    assert config.frontend.duration_s == 1.0, "and leaves the rest of the experiment as it is"


@pytest.mark.parametrize("experiment", ["debug", "nemo_fl"])
@pytest.mark.parametrize("model", ["vgg15", "resnet"])
def test_an_experiment_takes_another_model(experiment: str, model: str) -> None:
    assert compose([f"experiment={experiment}", f"model={model}", ROOT]).model.name == model


OF_LINK = {"superlink", "root_certificates", "credential", "num_nodes", "wait_s", "deadline_s"}
OF_FLOWER = {*OF_LINK, "client_cpus", "client_gpus"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_is_in_the_yaml_and_every_setting_in_the_class(stage: str) -> None:
    """Parsing would refuse either; this looks at the files themselves, each group's base file with the rest over it."""
    classes = {
        "model": {
            "crnn": training.CRNNConfig,
            "vgg15": training.VGG15Config,
            "resnet": training.ResNetConfig,
            "pooled": training.PooledConfig,
        },
        "frontend": {"ge2e": GE2EConfig, "transformers": TransformersConfig},
    }.get(stage, {})
    for name in CHOICES[stage]:
        expected = classes.get(name, type(getattr(defaults(), stage)))
        of_others = OF_FLOWER if stage == "executor" and name != "flower" else set()
        assert set(written(stage, name)) == {field.name for field in fields(expected)} - of_others, name


def written(stage: str, name: str) -> dict[str, Any]:
    """A group file's settings and those of the files it builds on."""
    own = yaml.safe_load((configs_dir() / stage / f"{name}.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        settings |= {} if base == "_self_" else written(stage, base)
    return settings | own


def test_benchmark_settings_are_those_of_their_class() -> None:
    file = yaml.safe_load((configs_dir() / "benchmark.yaml").read_text(encoding="utf-8"))
    assert set(file) == {field.name for field in fields(attack_config.BenchmarkConfig)}
    assert compose_benchmark(["run=here", "attacks=[fgsm]", "subsets.cw_l2=3"]).attacks[0].name == "fgsm"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=x", "atacks=[fgsm]"], r"unknown setting 'atacks', did you mean 'attacks'\? Known: accelerator, "),
        (["run=x", "epsilons=[-0.1]"], r"epsilons\.0 must be greater than or equal to 0, got -0\.1"),
        (["run=x", "batch_size=0"], "batch_size must be greater than or equal to 1, got 0"),
        (["fgsm"], "'fgsm' is not a setting: write key=value"),
    ],
)
def test_bad_benchmark_settings(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_benchmark(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=2"], r"unknown setting 'sed', did you mean 'seed'\? Known: .*federation, .*seed"),
        (["federation.num_round=2"], r"'federation\.num_round', did you mean 'federation\.num_rounds'\? Known: "),
        (["federaton.num_rounds=2"], r"unknown setting 'federaton', did you mean 'federation'.* Known: .*federation"),
        (["model=crn"], r"unknown model 'crn', did you mean 'crnn'\? Known: crnn, crnn_small, .*, resnet, vgg15"),
        (["experiment=debg"], r"unknown experiment 'debg', did you mean 'debug'\? Known: debug, default"),
        (["data=emodbb"], "unknown data 'emodbb', did you mean 'emodb'.* Known: builtin, "),
        (["objective=cw"], "unknown objective 'cw'. Known: bim, clean, domain_adversarial, fast, fgsm, free, own, pgd"),
        (["seed"], "'seed' is not a setting: write key=value"),
        (["data=nemo"], r"data=nemo needs data\.root=DIR"),
        (["model.channels=[8,8"], "."),
    ],
)
def test_bad_overrides(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_setting_of_another_network_lists_those_of_this_one() -> None:
    with pytest.raises(UserError, match=r"model\.hidden.*Known: model\.name, model\.norm"):
        compose(["model=vgg15", "model.hidden=8"])


def test_labels_of_a_manifest_can_be_set() -> None:
    config = compose(["data=manifest", ROOT, "data.labels.col=guilt"])
    assert config.data.labels == {"col": "guilt"}


@pytest.mark.parametrize("root", ["/a b/c", "/a/v=1/wav", "/a/EmoDB (1)/wav", "/a/x,y", "C:\\corpora\\nemo", "~/nemo"])
def test_any_path_is_taken_as_it_is(root: str) -> None:
    assert compose(["data=nemo", f"data.root={root}"]).data.root == root


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objective.epsilon", -0.1, r"objective\.epsilon must be greater than or equal to 0, got -0\.1"),
        ("objective.epsilon", float("nan"), r"objective\.epsilon must be a finite number, got nan"),
        ("objective.epsilon", float("inf"), r"objective\.epsilon must be a finite number, got inf"),
        ("objective.epsilon", None, r"objective\.epsilon must be a valid number, got None"),
        ("objective.epsilon", "large", r"objective\.epsilon must be a valid number.*got 'large'"),
        ("selection.epsilon", -1, r"selection\.epsilon must be greater than or equal to 0"),
        ("objective.step_size", 0, r"objective\.step_size must be greater than 0, got 0"),
        ("objective.steps", 0, r"objective\.steps must be greater than or equal to 1, got 0"),
        ("objective.fraction", 1.5, r"objective\.fraction must be less than or equal to 1, got 1\.5"),
        ("objective.recipe", "always", r"unknown objective\.recipe 'always'.*Known: per_round, per_step"),
        ("federation.num_rounds", 0, r"federation\.num_rounds must be greater than or equal to 1"),
        ("federation.num_rounds", 2.5, r"federation\.num_rounds must be a valid integer.*got 2\.5"),
        ("federation.num_rounds", "many", r"federation\.num_rounds must be a valid integer.*got 'many'"),
        ("federation.fraction_train", 0, r"federation\.fraction_train must be greater than 0"),
        ("federation", None, r"federation must be a dictionary"),
        ("federation.server_momentum", 1.0, r"federation\.server_momentum must be less than 1, got 1\.0"),
        ("federation.server_optimiser", "yogi", r"unknown federation\.server_optimiser 'yogi'.*Known: adam, momentum"),
        ("federation.server_learning_rate", 0, r"federation\.server_learning_rate must be greater than 0, got 0"),
        ("federation.server_second_momentum", 1.0, r"server_second_momentum must be less than 1, got 1\.0"),
        ("federation.server_tau", 0.0, r"federation\.server_tau must be greater than 0, got 0\.0"),
        ("selection.every", 0, r"selection\.every must be greater than or equal to 1, got 0"),
        ("federation.freeze_norm_from", -1, r"federation\.freeze_norm_from must be greater than or equal to 0"),
        ("clients.by", "age", r"unknown clients\.by 'age'.*Known: dirichlet, iid, session, speaker"),
        ("clients.num_clients", 0, r"clients\.num_clients must be greater than or equal to 1"),
        ("clients.dirichlet_alpha", 0, r"clients\.dirichlet_alpha must be greater than 0"),
        ("model.name", "crn", r"unknown model 'crn', did you mean 'crnn'\? Known: crnn, pooled, resnet, vgg15"),
        ("model.hiden", 8, r"unknown setting 'model\.hiden', did you mean 'model\.hidden'\? Known: model\.channels, "),
        ("model.channels", [8, 8], r"model\.channels must be .*at least 3 items.*got \[8, 8\]"),
        ("model.channels", [8, 8, 0], r"model\.channels\.2 must be greater than or equal to 1, got 0"),
        ("model.dropout", 1.0, r"model\.dropout must be less than 1, got 1\.0"),
        ("split.test_fraction", 1, r"split\.test_fraction must be less than 1"),
        ("split.test_speakers", "MK0", r"split\.test_speakers must be a valid tuple, got 'MK0'"),
        ("split.fold", -1, r"split\.fold must be greater than or equal to 0"),
        ("data.channel", "left", r"unknown data\.channel 'left'.*Known: first, mean, second"),
        ("data.num_speakers", 1, r"data\.num_speakers must be greater than or equal to 2"),
        ("data.labels", {"col": 3}, r"data\.labels\.col must be a valid string, got 3"),
        ("data.name", "nemo", r"data=nemo needs data\.root=DIR, the folder of the corpus"),
        (
            "frontend.fmax_hz",
            8001.0,
            r"frontend\.fmax_hz must be above fmin_hz \(20\) and at most .*\(8000\), got 8001",
        ),
        ("frontend.fmin_hz", 8000.0, r"frontend\.fmax_hz must be above fmin_hz \(8000\)"),
        ("frontend.duration_s", 0.01, r"frontend\.duration_s must hold one window, got 0\.01 s"),
        ("selection.by", "robust", r"selection\.by=robust needs selection\.robust_every of at least 1, got 0"),
        ("executor.workers", 0, r"executor\.workers must be auto or a whole number from 1 up, got 0"),
        ("executor.workers", "many", r"executor\.workers must be auto or a whole number from 1 up, got 'many'"),
        ("executor.workers", 2.0, r"executor\.workers must be auto or a whole number from 1 up, got 2\.0"),
        ("executor.workers", 2, r"executor\.workers goes with executor=processes, got 2 with executor=serial"),
        ("executor.name", "threads", r"unknown executor\.name 'threads'.*Known: flower, processes, serial"),
        ("precision", "16", r"unknown precision '16'.*Known: 16-mixed, 32-true, auto, bf16-mixed"),
        ("seed", -1, r"seed must be greater than or equal to 0, got -1"),
        ("resume", "maybe", r"resume must be a valid boolean.*got 'maybe'"),
        ("sed", 2, r"unknown setting 'sed', did you mean 'seed'\? Known: .*seed"),
        ("I!omap [a", 1, r"unknown setting 'I!omap \[a'. Known: .*seed"),
        ("frontend.mels[", 1, r"unknown setting 'frontend.mels\[', did you mean 'frontend.num_mels'"),
    ],
)
def test_bad_settings(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(changed(key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective.epsilon", 0),
        ("model.dropout", 0),
        ("split.validation_fraction", 0),
        ("federation.fraction_train", 1),
        ("frontend.fmax_hz", 8000),
        ("objective.step_size", None),
        ("clients.num_clients", None),
        ("executor.workers", 1),
    ],
)
def test_limits_that_are_allowed(key: str, value: object) -> None:
    parse(changed(key, value))


def test_workers_of_processes_and_of_a_run_from_before_there_were_any() -> None:
    assert compose(["executor=processes"]).executor.workers == "auto"
    assert compose(["executor=processes", "executor.workers=3"]).executor.workers == 3
    settings = dump(defaults())
    del settings["executor"]["workers"]
    assert parse(settings) == defaults()


def test_not_a_finite_weight_decay() -> None:
    with pytest.raises(UserError, match=r"optimiser\.weight_decay must be a finite number, got inf"):
        parse(changed("optimiser.weight_decay", float("inf")))


@pytest.mark.parametrize("change", [{"num_mels": 16}, {"duration_s": 0.4}], ids=str)
def test_input_that_vgg15_cannot_pool_five_times(change: dict[str, Any]) -> None:
    settings = deepcopy(dump(defaults()))
    settings["model"] = {"name": "vgg15", "norm": "batch"}
    settings["frontend"] |= change
    with pytest.raises(UserError, match="vgg15 needs at least 32 mel bins and 32 frames"):
        parse(settings)


def test_local_only_has_no_server_that_could_gather_momentum() -> None:
    with pytest.raises(UserError, match=r"server_momentum must be 0 with federation=local_only.*got 0\.9"):
        compose(["experiment=debug", "federation=local_only", "federation.server_momentum=0.9"])


def test_local_only_has_no_server_that_could_take_adams_steps() -> None:
    with pytest.raises(UserError, match=r"server_optimiser must be momentum.*with federation=local_only.*got adam"):
        compose(["experiment=debug", "federation=local_only", "federation.server_optimiser=adam"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("federation.server_optimiser=adam", r"server_learning_rate is needed with .*federation=federated_adam"),
        ("federation.server_learning_rate=0.1", r"goes with federation\.server_optimiser=adam, got 0\.1 with momentum"),
        ("federation.server_tau=0.1", r"server_tau goes with federation\.server_optimiser=adam, got 0\.1"),
    ],
)
def test_the_servers_rate_and_its_optimiser_go_together(changed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["experiment=debug", changed])


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (lambda settings: settings.pop("seed"), "setting seed is missing: start from a file of configs/"),
        (lambda settings: settings["federation"].pop("num_rounds"), r"setting federation\.num_rounds is missing"),
        (lambda settings: settings["model"].pop("hidden"), r"setting model\.hidden is missing"),
    ],
)
def test_missing_settings(drop: Callable[[dict[str, Any]], object], message: str) -> None:
    settings = deepcopy(dump(defaults()))
    drop(settings)
    with pytest.raises(UserError, match=message):
        parse(settings)


def test_model_without_a_name() -> None:
    settings = deepcopy(dump(defaults()))
    del settings["model"]["name"]
    with pytest.raises(UserError, match=r"setting model\.name is missing"):
        parse(settings)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """As a run writes it."""
    file = tmp_path / "config.yaml"
    config = compose(["experiment=debug", "seed=3", "frontend.log_offset=1e-7"])
    file.write_text(yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def test_config_file_of_another_schema(config_file: Path) -> None:
    config_file.write_text("schema: 99\n" + config_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml has schema 99, this version reads 1: train again"):
        compose(config_file=config_file)


@pytest.mark.parametrize("folder", ["123", "a: b", "/x, y/[1]", "null"])
def test_folders_beside_a_config_file_are_taken_as_they_are(config_file: Path, folder: str) -> None:
    config = compose([f"run_dir={folder}", "seed=9"], config_file=config_file)
    assert (config.run_dir, config.seed) == (None if folder == "null" else folder, 9)


def test_speakers_that_look_like_numbers() -> None:
    """EmoDB's and CREMA-D's."""
    named = compose(["split=speaker_independent", "split.test_speakers=[10,03,1001]", "experiment=debug"]).split
    assert named.test_speakers == ("10", "03", "1001")


def test_patience_that_ends_before_uar_is_measured() -> None:
    with pytest.raises(UserError, match=r"patience must be at least selection\.every \(5\).*got 3"):
        compose(["experiment=debug", "selection.every=5", "federation.patience=3"])


def test_patience_that_ends_before_robust_uar_is_measured() -> None:
    with pytest.raises(UserError, match=r"patience must be at least selection\.robust_every \(5\).*got 3"):
        compose(["experiment=debug", "selection=robust", "federation.patience=3"])


def test_config_file_round_trip(config_file: Path) -> None:
    config = compose(config_file=config_file)
    assert config == compose(["experiment=debug", "seed=3", "frontend.log_offset=1e-7"])
    again = compose(["seed=4", "federation.num_rounds=9", "model.channels=[4,4,4]"], config_file=config_file)
    assert (again.seed, again.federation.num_rounds, again.model.channels) == (4, 9, (4, 4, 4))  # type: ignore[union-attr]
    assert (again.data, again.frontend) == (config.data, config.frontend)


def test_misspelt_override_of_a_config_file(config_file: Path) -> None:
    with pytest.raises(UserError, match=r"unknown setting 'federation\.num_round', did you mean"):
        compose(["federation.num_round=9"], config_file=config_file)


def test_misspelt_key_in_a_config_file(config_file: Path) -> None:
    config_file.write_text(config_file.read_text(encoding="utf-8").replace("\nseed:", "\nsed:"), encoding="utf-8")
    with pytest.raises(UserError, match="unknown setting 'sed'"):
        compose(config_file=config_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such configuration: .*other.yaml"),
        ("- 1\n- 2\n", "other.yaml"),
        ("seed: [1", "other.yaml cannot be read"),
        ("seed: 1\n", "is missing"),
    ],
)
def test_config_file_that_is_none(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "other.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        compose(config_file=file)
    assert "\n" not in str(caught.value)


def test_a_benchmark_of_no_attack_is_told() -> None:
    with pytest.raises(UserError, match=r"^attacks must name one at least, got \[\]$"):
        compose_benchmark(["run=RUN", "attacks=[]"])


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{name}: &{name} [{f'*{before}, ' * 9}]\n" for before, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "more than 100000 values"),
        ("a: &a [*a]", "one that holds itself"),
        (f"a: {nested(2000)}", "lists more than 50 deep"),
        ("a: 1" + " " * (1 << 20), "bytes: that is no configuration"),
        (f"seed: {'9' * 5000}", "cannot be read"),
        ("seed: 2020-13-45", "cannot be read|is missing"),
        ("seed: !!timestamp 2020-13-w5", "cannot be read"),
        ("seed: !!bool maybe", "cannot be read"),
        ("seed: !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
    ids=["laughs", "itself", "deep", "large", "digits", "date", "tagged date", "tagged truth", "python"],
)
def test_files_that_would_break_the_reader_are_refused_in_a_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        compose(config_file=tmp_path / "config.yaml")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"seed={'9' * 5000}", "Exceeds the limit"),
        (f"seed=0x{'f' * 5000}", "seed must be a valid integer"),
        ("model=[[]]", r"unknown model '\[\[\]\]'"),
        (f"seed={nested(800)}", "."),
        (f"seed={'{a:' * 400}1{'}' * 400}", "too deeply"),
        (f"seed={'x' * 20_000}", "'seed' has 20000 characters"),
        ("augmentation.mel_masks.name=1", "augmentation.mel_masks must be a valid integer, got"),
        ("seed=&a [*a]", "."),
        ("experiment=two\nlines", "."),
    ],
    ids=lambda value: value[:20],
)
def test_values_that_would_break_the_parser_are_refused_in_a_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        compose([override])
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 2000
    with pytest.raises(UserError) as raised:
        compose_benchmark(["run=x", override])
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 2000


def test_whole_numbers_have_an_end() -> None:
    """Python refuses to write numbers of thousands of digits: the run's config.yaml could not be written."""
    with pytest.raises(UserError, match="seed must be less than 9223372036854775808, got 10"):
        compose_benchmark(["run=x", "seed=1" + "0" * 99])
    with pytest.raises(UserError, match=r"split\.seed must be"):
        compose(["split.seed=1" + "0" * 99])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a user's own: a network by import path, and an experiment that chooses it."""
    for file, text in {
        "model/mine.yaml": "_target_: mynets.Small\nwidth: 3\n",
        "experiment/ours.yaml": "# @package _global_\ndefaults:\n  - debug\n  - override /model: mine\n"
        "experiment: ours\ncallbacks:\n  - _target_: mynets.Watch\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


MYNETS = """
class Small:
    def __init__(self, num_classes, width):
        self.shape = num_classes, width
class Watch:
    pass
class Broken:
    def __init__(self):
        raise OSError("no microphone")
"""


def test_groups_and_experiments_of_ones_own(own: Path) -> None:
    config = compose(["experiment=ours", "model.width=5"], config_dir=own)
    assert config.model == ObjectConfig(target="mynets.Small", arguments={"width": 5})
    assert config.callbacks == (ObjectConfig(target="mynets.Watch"),)
    assert config.data.num_speakers == 2, "and ours below"
    assert parse(yaml.safe_load(yaml.safe_dump(dump(config)))) == config
    assert "mine" in groups(own)["model"] and "crnn" in groups(own)["model"]
    with pytest.raises(UserError, match=r"unknown model 'mine'.*Known: crnn, "):
        compose(["model=mine"])
    with pytest.raises(UserError, match=r"no such folder of settings: .*nowhere"):
        compose([], config_dir=own / "nowhere")


def test_objects_by_import_path_become_arguments_of_train(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is only bound, since its number of classes is not known yet; nothing is imported before."""
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "path", list(sys.path))
    algorithm = ["federation.algorithm._target_=collections.Counter", "federation.algorithm.a=2"]
    objective = ["objective=own", "objective._target_=fractions.Fraction", "objective.numerator=3"]
    config = compose(["experiment=ours", *algorithm, *objective], config_dir=own)
    assert "mynets" not in sys.modules
    (own / "mynets.py").write_text(MYNETS)
    made = instantiated_objects(config)
    assert set(made) == {"network", "callbacks", "algorithm", "objective"}
    assert made["network"](7).shape == (7, 3)
    assert [type(callback).__name__ for callback in made["callbacks"]] == ["Watch"]
    assert (made["algorithm"]["a"], made["objective"]) == (2, 3)
    assert instantiated_objects(compose(["experiment=debug"])) == {}
    for target, words in (("mynets.Broken", "no microphone"), ("mynets.Nothing", "Nothing"), ("nowhere.X", "nowhere")):
        with pytest.raises(UserError, match=f"{target} cannot be made: .*{words}"):
            instantiated_objects(compose(["experiment=debug", "objective=own", f"objective._target_={target}"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=own"], "an object of your own needs _target_: PACKAGE.CLASS"),
        (["model=own", "model._target_=3"], "an object of your own needs _target_: PACKAGE.CLASS"),
        (["callbacks=[early]"], "an object of your own needs _target_: PACKAGE.CLASS.* got 'early'"),
        (["federation.algorithm=half"], "an object of your own needs _target_: .* got 'half'"),
    ],
)
def test_objects_without_a_path(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["experiment=debug", *overrides])


def test_a_program_with_a_hydra_of_its_own_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("model: mine\n")
    with initialize_config_dir(config_dir=str(tmp_path), version_base="1.2"):
        before, state = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        assert compose(["experiment=debug"]).experiment == "debug"
        with pytest.raises(UserError):
            compose(["experiment=debgu"])
        assert GlobalHydra.instance().hydra is before and HydraConfig.instance().cfg is state
        assert version.getbase() == Version("1.2")
        assert hydra_compose("theirs") == {"model": "mine"}
        assert "ser-fl" not in str(GlobalHydra.instance().config_loader().get_search_path())
        with pytest.raises(MissingConfigException):
            hydra_compose("train")
    assert not GlobalHydra.instance().is_initialized()


def test_an_unknown_setting_of_one_attack_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'attacks.0.stepz'.*attacks.0.name"):
        compose_benchmark(["run=here", "attacks=[{name: bim, stepz: 3}]"])
    with pytest.raises(UserError, match=r"unknown setting 'adaptive.0.stepz'"):
        compose_benchmark(["run=here", "adaptive={name: bim, stepz: 3}"])
