"""Settings: what is wrong is refused in one sentence that names the dotted key, before anything starts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.io import write

from latentite.config import (
    STAGES,
    check_first,
    compose,
    config_dir,
    discarding_unbegun,
    load,
    one_sentence,
    with_new_keys,
    with_quotes,
)
from latentite.training.stage_settings import TrainVAEConfig

ROOT = config_dir().parent


def settings(*overrides: str) -> TrainVAEConfig:
    return load(TrainVAEConfig, compose("train_vae", overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batchsize=3", r"data\.batchsize is not a setting; did you mean data\.batch_size\?"),
        ("+data.batchsize=3", r"data\.batchsize is not a setting; did you mean data\.batch_size\?"),
        ("vae_modul.latent_dim=4", r"vae_modul is not a setting; did you mean vae_module\?"),
        ("vae_module.encoder.dmodel=4", r"vae_module\.encoder\.dmodel is not a setting; did you mean"),
        ("vae_module.latent_dim=0", r"vae_module\.latent_dim must be at least 1, got 0"),
        ("vae_module.latent_dim=8.5", r"vae_module\.latent_dim must be a whole number, got 8\.5"),
        ("data.batch_size=-1", r"data\.batch_size must be at least 1, got -1"),
        ("data.batch_size=many", r"data\.batch_size must be a whole number, got 'many'"),
        ("data.batch_size=true", r"data\.batch_size must be a whole number, got True"),
        ("data.batch_size=null", r"data\.batch_size must be a whole number, got None"),
        ("data.batch_atoms=5", r"data\.batch_atoms must be at least max_atoms \(20\), got 5"),
        ("data.data_dir=/nowhere", r"data\.data_dir must be an existing folder, got '/nowhere'"),
        ("ckpt_path=/nowhere.ckpt", r"ckpt_path must be an existing checkpoint file, got '/nowhere\.ckpt'"),
        ("seed=-1", r"seed must be 0 or more, got -1"),
        ("trainer.max_epochs=0", r"trainer\.max_epochs must be at least 1, or -1 for no limit, got 0"),
        ("trainer.max_epochs=-1", r"trainer\.max_epochs must be given where neither"),
        ("trainer.max_time=soon", r"trainer\.max_time must be HH:MM:SS, DD:HH:MM:SS or seconds, got 'soon'"),
        ("trainer.precision=fp8", r"trainer\.precision must be one of 32-true, bf16-mixed.*, got 'fp8'"),
        ("trainer.precision=64-true", r"trainer\.precision must be one of .*, got '64-true'"),
        (
            "trainer.options={max_epochs:3}",
            r"trainer\.options must not hold max_epochs; set trainer\.max_epochs",
        ),
        ("trainer.gradient_clip_val=0", r"trainer\.gradient_clip_val must be above 0 or null, got 0"),
        ("vae_module.optimizer.lr=-1", r"vae_module\.optimizer\.lr must be a positive number, got -1"),
        ("vae_module.optimizer.lr=nan", r"vae_module\.optimizer\.lr must be a positive number, got nan"),
        ("vae_module.optimizer.name=adamx", r"vae_module\.optimizer\.name must be one of adamw, adam, sgd"),
        ("vae_module.optimizer.betas=[0.9]", r"vae_module\.optimizer\.betas must be a list of 2 values"),
        ("vae_module.scheduler.name=step", r"vae_module\.scheduler\.name must be one of constant, cosine"),
        ("vae_module.scheduler.factor=1.5", r"vae_module\.scheduler\.factor must lie between 0 and 1"),
        ("vae_module.ema.decay=1", r"vae_module\.ema\.decay must lie in \[0, 1\), got 1"),
        ("vae_module.noise.ratio=2", r"vae_module\.noise\.ratio must be in \[0, 1\], got 2"),
        ("vae_module.loss_weights.kl=-1", r"vae_module\.loss_weights\.kl must be a finite number"),
        (
            "vae_module.augmentation.rotate=5",
            r"vae_module\.augmentation\.rotate must be true or false, got 5",
        ),
        ("vae_module.encoder=3", r"vae_module\.encoder must be a section of keys, got 3"),
        ("logger.wandb.mode=maybe", r"logger\.wandb\.mode must be one of online, offline, disabled"),
        ("data=mp20", r"data=mp20 does not exist; near it there are mp_20,"),
        ("experiment=mp_20/vae", r"experiment=mp_20/vae does not exist; near it there are .*mp_20/vae_dng"),
        ("data.batch_size", r"."),
        ("data.target_condition=[a", r"."),
    ],
)
def test_a_mistake_is_refused_in_one_sentence(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings(override)
    sentence = one_sentence(caught.value)
    assert "\n" not in sentence
    assert "append to your config" not in sentence
    assert len(sentence) < 600


def test_the_keys_that_users_type_reach_the_typed_config(tmp_path):
    config = settings(
        "trainer.max_epochs=7",
        "trainer.max_time=01:30:00",
        "data.batch_size=32",
        f"data.data_dir={tmp_path}",
        "data.target_condition=[band_gap,density]",
        "logger.wandb.project=p",
        "logger.wandb.name=n",
        "vae_module.loss_weights={atom_types:2,lengths:3,angles:4,frac_coords:5,kl:1e-4,fa:0}",
        "vae_module.noise.ratio=0.1",
        "vae_module.noise.corruption_scale=0.2",
        "vae_module.augmentation.translate=false",
        "vae_module.augmentation.rotate=false",
        "vae_module.latent_dim=4",
        "vae_module.atom_type_predict=false",
        "vae_module.encoder.num_layers=2",
        "vae_module.decoder.num_layers=3",
        "vae_module.optimizer.lr=1e-3",
        "vae_module.scheduler.name=cosine",
        "trainer.precision=bf16-mixed",
        "compile=true",
        "seed=5",
        "task_name=mine",
    )
    assert config.trainer.max_epochs == 7
    assert config.trainer.max_seconds == 5400
    assert (config.data.batch_size, config.data.data_dir, config.data.seed) == (32, tmp_path, 5)
    assert config.data.conditions == ["band_gap", "density"]
    assert (config.logger.wandb.project, config.logger.wandb.name) == ("p", "n")
    assert config.vae_module.loss_weights.kl == 1e-4
    assert config.vae_module.loss_weights.frac_coords == 5
    assert (config.vae_module.noise.ratio, config.vae_module.noise.corruption_scale) == (0.1, 0.2)
    assert not config.vae_module.augmentation.translate
    assert not config.vae_module.augmentation.rotate
    assert not config.vae_module.atom_type_predict
    assert (config.vae_module.encoder.num_layers, config.vae_module.decoder.num_layers) == (2, 3)
    assert config.vae_module.optimizer.lr == 1e-3
    assert (config.compile, config.seed, config.task_name) == (True, 5, "mine")


def test_defaults_are_the_numbers_of_the_public_checkpoints():
    config = settings()
    module = config.vae_module
    for part in (module.encoder, module.decoder):
        assert (part.d_model, part.num_heads, part.dim_feedforward, part.num_layers) == (512, 8, 2048, 8)
    weights = module.loss_weights
    assert (weights.atom_types, weights.lengths, weights.angles) == (1, 1, 10)
    assert (weights.frac_coords, weights.kl, weights.fa) == (10, 1e-5, 0)
    assert (module.optimizer.name, module.optimizer.lr, module.optimizer.weight_decay) == ("adamw", 1e-4, 0)
    assert module.scheduler.name == "constant"
    assert (config.data.batch_size, config.trainer.gradient_clip_val) == (256, 10)
    assert (config.trainer.max_epochs, config.trainer.check_val_every_n_epoch) == (5000, 50)


def test_every_trainer_of_the_configs_is_valid():
    names = {path.stem for path in (config_dir() / "trainer").glob("*.yaml")}
    assert names >= {"cpu", "gpu", "ddp", "ddp_cpu", "default"}
    for name in names:
        settings(f"trainer={name}")


@pytest.mark.parametrize("text", ["00:00:30", "00:00:00:30", 30])
def test_max_time_is_read_in_three_forms(text):
    assert settings(f"trainer.max_time={text}").trainer.max_seconds == 30


def test_hub_names_are_resolved_when_a_config_asks(monkeypatch, tmp_path):
    from latentite import hub

    checkpoint = tmp_path / "model.ckpt"
    checkpoint.touch()
    monkeypatch.setattr(hub, "resolve", lambda name: {"mp_20_vae": checkpoint}[name])
    assert settings("ckpt_path='${hub:mp_20_vae}'").ckpt_path == checkpoint


def test_a_run_folder_is_hydras_to_choose():
    with pytest.raises(ValueError, match=r"run_dir is not a setting; .* hydra\.run\.dir=here"):
        check_first(STAGES["vae"], ["experiment=prototypes/vae_dng", "run_dir=here"])


def test_no_suggestion_is_refused_in_its_turn() -> None:
    """`run_dri` was answered by "did you mean run_dir?", which is none either."""
    with pytest.raises(ValueError, match=r"^run_dri is not a setting; ") as refused:
        check_first(STAGES["vae"], ["experiment=prototypes/vae_dng", "run_dri=here"])
    assert "run_dir" not in str(refused.value)


def test_sweeps_are_not_checked_as_single_settings():
    check_first(STAGES["vae"], ["--multirun", "seed=1,2"])
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        check_first(STAGES["vae"], ["data.batch_size=-1"])


def test_keys_that_no_file_has_reach_hydra_with_a_plus():
    """The script composes a second time, in hydra itself, which refuses what is absent or null in the files."""
    given = [
        "rl_module.replay.size=8",
        "rl_module.reward_fn.components.density.scale=6.5",
        "rl_module.lora.rank=2,4",
        "seed=1,2",
        "hydra.run.dir=here",
        "+rl_module.replay.kind=formula",
        "rl_module.optimizer.lr=1e-4",
    ]
    found = with_new_keys(STAGES["rl"], ["--multirun", "experiment=prototypes/rl_density", *given])
    assert found[2:5] == [f"+{argument}" for argument in given[:3]]
    assert found[:2] + found[5:] == ["--multirun", "experiment=prototypes/rl_density", *given[3:]]
    wrong = ["experiment=nothing", "rl_module.replay.size=8"]
    assert with_new_keys(STAGES["rl"], wrong) == wrong


def test_a_new_key_is_known_on_the_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "src" / "train_rl.py"), "experiment=prototypes/rl_density"]
    new = ["rl_module.replay.size=8", "rl_module.reward_fn.components.density.scale=6.5"]
    done = subprocess.run(
        [*command, *new, "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = yaml.safe_load(done.stdout)["rl_module"]
    assert printed["replay"] == {"size": 8}
    assert printed["reward_fn"]["components"]["density"]["scale"] == 6.5


ODD_NAMES = [
    "epoch_step=100.ckpt",
    "a b.ckpt",
    "two  blanks.ckpt",
    "a,b.ckpt",
    "~tilde.ckpt",
    "a$b.ckpt",
    "a${b}.ckpt",
    "[a].ckpt",
    "{a:1}.ckpt",
    "(a).ckpt",
    "it's.ckpt",
    'say "x".ckpt',
    "#1&2;3!.ckpt",
    "läufe.ckpt",
    "a=b,c='d' [e].ckpt",
    "100",
    "true",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_path_may_have_any_characters(tmp_path, monkeypatch, name):
    """To hydra's grammar `=`, `~`, quotes, brackets and most other signs are mistakes, and a comma is a sweep."""
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    for prefix in ("", "+", "++"):
        found = compose("train_vae", [f"{prefix}ckpt_path={tmp_path / name}"])
        assert load(TrainVAEConfig, found).ckpt_path == tmp_path / name
    relative = compose("train_ldm", [f"ldm_module.vae_ckpt_path={name}"])["ldm_module"]["vae_ckpt_path"]
    assert relative == name


def test_a_relative_name_of_digits_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("100").touch()
    assert settings("ckpt_path=100").ckpt_path == Path("100")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """Shells leave it as it is after a `=`; hydra stumbled over it, and where it was quoted no file was found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "x y" / "last=1.ckpt"
    path.parent.mkdir()
    path.touch()
    for given in ("ckpt_path=~/x y/last=1.ckpt", "ckpt_path='~/x y/last=1.ckpt'"):
        assert settings(given).ckpt_path == path
    assert with_quotes(STAGES["vae"], ["hydra.run.dir=~/a=1"]) == [f"hydra.run.dir='{tmp_path}/a=1'"]
    assert load(TrainVAEConfig, compose("train_vae") | {"ckpt_path": "~/x y/last=1.ckpt"}).ckpt_path == path


@pytest.mark.parametrize(
    "given",
    [
        "ckpt_path='a=b'",
        'ckpt_path="a b"',
        r"ckpt_path=a\=b",
        "ckpt_path=null",
        "ckpt_path='${hub:mp_20_vae}'",
        "ckpt_path=${hub:mp_20_vae}",
        "hydra.run.dir=logs/${now:%Y}",
        "trainer.max_epochs=3",
        "vae_module.optimizer.betas=[0.5,0.6]",
        "~experiment",
        "data=mp_20",
    ],
)
def test_what_hydra_understands_stays_as_it_is(given):
    assert with_quotes(STAGES["vae"], [given]) == [given]


def test_commas_of_a_sweep_stay_a_sweep():
    given = ["--multirun", "ckpt_path=a,b", "seed=1,2"]
    assert with_quotes(STAGES["vae"], given) == given


def test_a_value_that_cannot_be_read_is_answered_by_what_to_type(tmp_path):
    with pytest.raises(ValueError, match="where the value is a text, type ") as refused:
        compose("train_vae", ["vae_module.optimizer.name=a=b"])
    advice = str(refused.value).rpartition("type ")[2]
    assert shlex.split(advice) == ['vae_module.optimizer.name="a=b"']
    with pytest.raises(ValueError, match=r"optimizer\.name must be one of adamw, adam, sgd, got 'a=b'"):
        settings(*shlex.split(advice))


def test_a_path_that_the_shell_cut_at_a_blank_is_answered_by_what_to_type():
    with pytest.raises(
        ValueError, match=r"y/last\.ckpt is not key=value; .* type 'ckpt_path=~/x y/last\.ckpt'$"
    ):
        with_quotes(STAGES["vae"], ["trainer=cpu", "ckpt_path=~/x", "y/last.ckpt"])


def test_a_variable_that_is_none_is_answered_by_how_to_mean_the_characters():
    with pytest.raises(ValueError, match=r"Interpolation key 'b' not found; to mean the characters .* \\\${"):
        compose("train_ldm", ["ldm_module.vae_ckpt_path=a${b}.ckpt"])


def run(*arguments: str, cwd: Path, stage: str = "vae") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "src" / f"train_{stage}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_script_refuses_with_one_line_and_leaves_nothing(tmp_path):
    done = run("experiment=prototypes/vae_dng", "vae_module.latent_dim=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: vae_module.latent_dim must be at least 1, got 0\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_late_leaves_no_folder(tmp_path):
    """The VAE is read after the data, when hydra has long made the run's folder."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.extxyz", [bulk("NaCl", "rocksalt", a=5.6)])
    given = [f"data.data_dir={tmp_path / 'data'}", "ldm_module.vae_ckpt_path=nowhere.ckpt", "trainer=cpu"]
    done = run("experiment=prototypes/ldm_null", *given, "hydra.run.dir=run", cwd=tmp_path, stage="ldm")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ldm_module.vae_ckpt_path: there is no file")
    assert "1 crystals" in done.stdout, "refused before hydra: this test would say nothing"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", ["config.yaml", "checkpoints"])
def test_a_folder_with_something_of_a_run_is_kept_whole(tmp_path, more):
    for name in (".hydra", "train.log", more):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="refused"), discarding_unbegun(tmp_path):
        raise ValueError("refused")
    assert {path.name for path in tmp_path.iterdir()} == {".hydra", "train.log", more}


def test_the_folder_that_the_command_runs_in_is_kept(tmp_path, monkeypatch):
    """`hydra.run.dir=.`"""
    (tmp_path / ".hydra").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="refused"), discarding_unbegun(tmp_path):
        raise ValueError("refused")
    assert (tmp_path / ".hydra").is_dir()


def test_cfg_job_prints_the_settings_from_any_folder(tmp_path):
    done = run("experiment=mp_20/vae_csp", "--cfg", "job", "data.batch_size=3", cwd=tmp_path)
    assert done.returncode == 0
    printed = yaml.safe_load(done.stdout)
    assert printed["data"]["batch_size"] == 3
    assert printed["vae_module"]["atom_type_predict"] is False
    assert printed["vae_module"]["encoder"]["d_model"] == 512


def test_a_wrong_hub_name_is_refused_in_the_hub_s_own_words():
    with pytest.raises(ValueError, match=r"^there is no checkpoint named 'mp_20_va'; did you mean mp_20_vae"):
        compose("train_ldm", ["ldm_module.vae_ckpt_path=${hub:mp_20_va}"])


def test_the_settings_of_every_stage_are_composed_without_lightning() -> None:
    """They once came with the modules that train, and `--cfg job` took twice as long."""
    code = (
        "import sys; from latentite.config import STAGES, compose; "
        "[compose(entry.config_name) for entry in STAGES.values()]; "
        "print({'lightning', 'pymatgen'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "set()"
