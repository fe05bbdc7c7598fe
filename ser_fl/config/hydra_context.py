"""Hydra over our folders of settings, beside whatever Hydra the calling program has of its own. Only public means of
Hydra 1.3: a config source that reads text literally, a search path plugin, and the config store.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from pathlib import Path
from typing import Any

from hydra import version
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ser_fl.config.schema import Config
from ser_fl.config.text import bounded_yaml, escaped, literal_yaml, type_at

_FOLDERS: ContextVar[Sequence[Path]] = ContextVar("folders", default=())
_WHOLE, _TYPED = "_file_", "_typed_"
"""Names in the config store."""


class LiteralFiles(ConfigSource):
    """A folder of YAML files in which text is what it looks like. Of several corpora, ``data/nemo+ravdess``, there is
    the file that a corpus has, but for its name.
    """

    @staticmethod
    def scheme() -> str:
        return "ser-fl"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no such file of settings: {file}")
        text = bounded_yaml(file) if file.is_file() else f"defaults: [builtin, _self_]\nname: {file.stem}\n"
        header = self._get_header_dict(text[:512])
        group = () if header.get("package") == "_global_" else tuple(config_path.split("/")[:-1])
        config = OmegaConf.load(StringIO(literal_yaml(text, type_at(Config, group))))
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def is_group(self, config_path: str) -> bool:
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        file = self._file(config_path)
        return file.is_file() or (file.parent.name == "data" and "+" in file.stem)

    def available(self) -> bool:
        return self.is_group("")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found: list[str] = []
        for path in sorted((Path(self.path) / config_path).iterdir()):
            self._list_add_result(found, f"{config_path}/{path.name}", path.name, results_filter)
        return sorted(set(found))

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path)


class OurFolders(SearchPathPlugin):
    """Puts the folders of `hydra_over` on the search path; does nothing in a Hydra of anybody else's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in _FOLDERS.get():
            search_path.append("ser_fl", f"{LiteralFiles.scheme()}://{folder.resolve()}")


@contextmanager
def hydra_over(
    folders: Sequence[Path], *, whole: Mapping[str, Any] | None, typed: Mapping[str, Any]
) -> Iterator[tuple[str | None, list[str]]]:
    """Inside, a Hydra that is initialised has our settings; afterwards the caller's Hydra is back.

    ``folders`` are on its search path. ``whole`` are a file's settings to start from, with texts taken literally; their
    name is given. ``typed`` are those that Hydra's grammar cannot name; overrides are given that lay them over all
    others.
    """
    for plugin in (LiteralFiles, OurFolders):
        Plugins.instance().register(plugin)
    callers, base = GlobalHydra.instance().hydra, version.VersionBase.instance().getbase()
    job, store = HydraConfig.instance().cfg, ConfigStore.instance()
    token = _FOLDERS.set(folders)
    GlobalHydra.instance().clear()
    if whole is not None:
        store.store(_WHOLE, _literal(whole))
    if typed:
        store.store("typed", dict(typed), group=_TYPED, package="_global_")
    try:
        yield _WHOLE if whole is not None else None, [f"+{_TYPED}=typed"] if typed else []
    finally:
        _FOLDERS.reset(token)
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = callers, job
        version.VersionBase.instance().version_base = base
        for stored in (_WHOLE + ".yaml", _TYPED):
            store.repo.pop(stored, None)


def _literal(value: Any) -> Any:
    """Settings whose texts OmegaConf takes as they are."""
    if isinstance(value, Mapping):
        return {name: _literal(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return escaped(value) if isinstance(value, str) else value
