"""Real processes, really killed: what is resumed is the uninterrupted run.

pytest -m slow -s tests/claims/kill_test.py     # prints what was killed where
"""

import functools
import itertools
import random
import signal

import keras
import pytest
import tensorflow_datasets as tfds

from mp_loop.run import records
from tests.claims import victim
from tests.support import data_sets, lives

# An epoch has 31 steps; what is due when never coincides for long.
BASE = (
    "--model=tests.claims.victim:model",
    "--batch_size=192",
    "--steps=48",
    "--steps_per_call=4",
    "--log_every=5",
    "--eval_every=14",
    "--checkpoint_every=7",
    "--deterministic",
)
# Scales that overflow at first, so that they move both ways.
HIGH = ("--initial_scale=4e9", "--growth_interval=9", "--noexplain_skips")
OURS = (*HIGH, "--max_scale=1e10")
# The head for 31 steps, then what is not frozen.
PHASES = ("--head_epochs=1", "--model=MobileNetV2", "--image_size=32", "--eval_every=0")
TEXTS = ("--dataset=made", "--batch_size=12", "--sequence_length=8", "--dropout=.1")
RUNS = {
    "float16": ("--augment=flip_shift", *OURS),
    "accumulated": ("--accumulate_steps=3", "--optimizer=nesterov", "--clip_norm=0.5"),
    "bfloat16": ("--precision=bfloat16", "--optimizer=adamw", "--weight_decay=.01"),
    "float32": ("--precision=float32", "--schedule=cosine", "--optimizer=momentum"),
    "scheduled": ("--schedule=piecewise", "--warmup_steps=9", "--keep_checkpoints=1"),
    "one step a call": ("--steps_per_call=1", "--optimizer=sgd", "--eval_every=5"),
    "as Keras": ("--keras_arithmetic", *OURS),
    "keras float16": ("--loop=keras", *HIGH),
    "keras float32": ("--loop=keras", "--precision=float32", "--optimizer=adamw"),
    "keras nesterov": ("--loop=keras", "--optimizer=nesterov", *HIGH),
    "two phases": ("--head_epochs=1", "--freeze=^batch", "--augment=flip_crop", *OURS),
    "keras two phases": ("--head_epochs=1", "--loop=keras", "--precision=bfloat16"),
    "MobileNetV2": (*PHASES, "--freeze=^block_([0-9]|1[0-4])_", *OURS),
    "inspected": (*OURS, "--inspect_every=12", "--explain_skips"),
    "text float16": (*TEXTS, *OURS),
    "text bfloat16": (*TEXTS, "--precision=bfloat16", "--accumulate_steps=2"),
    "rolled back": (
        "--rollback=3",
        "--diverged_after=5",
        "--learning_rate=1e12",
        "--rollback_factor=1e-14",
        "--noexplain_skips",
    ),
}  # fmt: skip
# They use oneDNN's float16 convolutions: see `mp_loop.run.build.start_tensorflow`.
KERAS_FLOAT16 = ("keras float16", "keras nesterov")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh")
# In each run of the slow test: of all kills, and of those in its last seconds.
KILLS, LATE = 12, 3


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Flags of a small BERT in a folder and of its data; 31 batches of 12."""
    keras_hub = pytest.importorskip("keras_hub")
    folder, chance = tmp_path_factory.mktemp("texts"), random.Random(0)
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(len(VOCABULARY), 2, 2, 16, 32)
    tokens = keras_hub.models.BertTokenizer(vocabulary=VOCABULARY)
    processor = keras_hub.models.BertTextClassifierPreprocessor(tokens)
    backbone.save_to_preset(str(folder / "bert"))
    processor.save_to_preset(str(folder / "bert"))
    examples = [
        {"sentence": " ".join(chance.choices("abcdefgh", k=6)), "label": i % 2}
        for i in range(12 * 31)
    ]
    label, text = data_sets.LABEL, tfds.features.Text()
    data_sets.write(
        folder, text, label, examples, per_file=len(examples), key="sentence"
    )
    return [f"--model=keras_hub:{folder / 'bert'}", f"--data_dir={folder}"]


@pytest.fixture(scope="module")
def live(tmp_path_factory, request):
    """Returns a function for one life of a run: to its end or until it is killed."""
    log = tmp_path_factory.mktemp("log") / "log"

    @functools.cache
    def nursery(onednn, *modules):
        made = lives.Nursery(log, {"TF_ENABLE_ONEDNN_OPTS": onednn}, modules)
        request.addfinalizer(made.close)
        return made

    def live(folder, name, moment="-"):
        onednn = "0" if name in KERAS_FLOAT16 else "1"
        begun = (folder / "flags.txt").exists()
        words = [*BASE, *RUNS[name]]
        modules = []
        if name.startswith("text"):
            words += request.getfixturevalue("texts")
            modules = ["keras_hub"]
        words = [f"--flagfile={folder}/flags.txt", "--resume"] if begun else words
        words.append(f"--output_dir={folder}")
        end = nursery(onednn, *modules).live(words, moment)
        assert end.code in (0, -signal.SIGKILL), end.said
        return end.code

    return live


def same(folder, whole):
    lives.assert_same(folder, whole)
    steps = [line["step"] for line in records.read_metrics(folder)]
    phases = "--head_epochs=1" in (folder / "flags.txt").read_text().split()
    assert steps == sorted({*range(5, 48, 5), 48} | ({31} if phases else set()))


@pytest.fixture(scope="module")
def whole(live, tmp_path_factory):
    """Returns a function for the folder of a run that nothing interrupted."""

    @functools.cache
    def whole(name):
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert live(folder, name) == 0
        return folder

    return whole


@pytest.fixture(scope="module")
def survives(live, whole):
    """Kills a run at each moment in turn; then lets it finish and compares."""

    def survives(folder, name, moments):
        uninterrupted = whole(name)
        killed, done = [], False
        for moment in moments:
            where = moment.split(":")[0]
            if done and where not in ("in a resume", *victim.LATE):
                continue  # It would not be reached any more.
            if live(folder, name, moment):
                killed.append(moment)
            else:
                done = True
        assert live(folder, name) == 0
        same(folder, uninterrupted)
        print(f"{name}: killed {len(killed)} times, {killed}")
        return killed

    return survives


def test_killed_again_and_again(tmp_path, survives):
    moments = ["in an evaluation:1:3", "before its name:6:0", "in a line:2:0"]
    assert survives(tmp_path / "run", "float16", moments) == moments
    lines = records.read_metrics(tmp_path / "run")
    scales = [line["loss_scale"] for line in lines]
    assert lines[-1]["skipped_steps"] > 3 and any(
        earlier < later for earlier, later in itertools.pairwise(scales)
    )


def test_killed_between_two_phases(tmp_path, survives):
    # The sixth checkpoint is the first of the second phase, and replaces the fifth.
    moments = [
        "before a checkpoint:6:0",
        "in a replacement:1:0",
        "before a checkpoint:2:0",
    ]
    assert survives(tmp_path / "run", "two phases", moments) == moments


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "keras float32", "rolled back"])
def test_killed_at_every_boundary(tmp_path, survives, name):
    moments = [f"{where}:1:0" for where in victim.PLACES]
    killed = survives(tmp_path / "run", name, moments)
    missed = {m.split(":")[0] for m in moments if m not in killed}
    assert missed <= {"in a replacement", "in a rollback"}


def random_moments(name, chance):
    """Ten while it trains, and four in its last second."""
    never = {"in a resume", "in a rollback", "in a replacement", *victim.LATE}
    if name == "rolled back":
        never.remove("in a rollback")
    places = [place for place in victim.PLACES if place not in never]
    for number in range(10):
        where = chance.choice([*places, "in a resume"] if number > 2 else places)
        # Later ones must be reached in what is left of the run.
        count = chance.randint(1, 3 if number < 3 else 1)
        yield f"{where}:{count}:{chance.choice([0, chance.expovariate(1 / 30)])}"
    for _ in range(4):  # Model, summary, picture and report take about a second.
        yield f"before the model:1:{chance.uniform(0, 700)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(tmp_path, survives, name):
    chance, killed = random.Random(name), []
    for attempt in itertools.count():
        moments = random_moments(name, chance)
        killed += survives(tmp_path / str(attempt), name, moments)
        late = [m for m in killed if m.split(":")[0] in victim.LATE]
        if len(late) >= LATE and len(killed) >= KILLS:
            break
    print(f"{name}: {len(killed)} kills, {len(late)} in the last seconds")
