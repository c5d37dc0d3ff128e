"""Every reason for which TensorFlow sees no GPU, on a machine without one."""

import shutil
import subprocess

import pytest

from mp_loop.hardware import cuda_driver, environment, missing_gpu

H100 = cuda_driver.Card("NVIDIA H100", (9, 0), 80 << 30)
K80 = cuda_driver.Card("Tesla K80", (3, 7), 11 << 30)
# As TensorFlow 2.21 wrote it beside a driver that was played by a library of stubs.
LOG = """\
I0000 00:00:1795839133.903106 11852 dso_loader.cc:133] Successfully opened dynamic \
library libcuda.so.1
I0000 00:00:1795839133.908560 11852 dso_loader.cc:144] Could not load dynamic library \
'libcublas.so.12'; dlerror: libcublas.so.12: cannot open shared object file: No such \
file or directory; LD_LIBRARY_PATH: /opt
I0000 00:00:1795839133.908845 11852 dso_loader.cc:144] Could not load dynamic library \
'libcudnn.so.9'; dlerror: libcudnn.so.9: cannot open shared object file
W0000 00:00:1795839133.908859 11852 gpu_device.cc:2365] Cannot dlopen some GPU \
libraries. Please make sure the missing libraries mentioned above are installed properly
"""
FAILED = "E0000 00:00:1.0 7 cuda_platform.cc:52] failed call to cuInit: UNKNOWN\n"


def answers(*cards, version=(12, 8), error=None):
    return cuda_driver.Answer(True, error, version, cards)


def facts(built_for="12.5.1", **others):
    return missing_gpu.Facts(built_for, (6, 0), **others)


CLOSED = cuda_driver.Answer(False, "libcuda.so.1: cannot open shared object file")
# (facts, what the sentences hold, in order)
REASONS = {
    "nothing of NVIDIA": (facts(driver=CLOSED), ["no nvidia-smi and no libcuda.so.1"]),
    "built without CUDA": (
        facts(None, driver=answers(H100)),
        ["was built without CUDA (pip install 'mp_loop[gpu]')"],
    ),
    "neither": (facts(None, driver=CLOSED), ["without CUDA", "No NVIDIA driver"]),
    "hidden": (
        facts(visible="", driver=answers(error="cuInit returns CUDA_ERROR_NO_DEVICE")),
        ["CUDA_VISIBLE_DEVICES ('') hides every GPU."],
    ),
    "hidden by a number": (facts(visible="-1"), ["('-1') hides every GPU."]),
    "hidden, and built without CUDA": (
        facts(None, visible="-1"),
        ["hides every GPU", "without CUDA"],
    ),
    "a container without its GPUs": (
        facts(kernel_driver="580.65.06", driver=CLOSED),
        ["driver 580.65.06 is loaded, but its library cannot be opened: libcuda.so.1"],
    ),
    "a driver that does not start": (
        facts(kernel_driver="580.65.06", driver=answers(error="cuInit returns E")),
        ["NVIDIA's driver 580.65.06 offers no card: cuInit returns E."],
    ),
    "a card that is not there": (
        facts(visible="7", driver=answers(error="cuInit returns CUDA_ERROR_NO_DEVICE")),
        ["CUDA_ERROR_NO_DEVICE. CUDA_VISIBLE_DEVICES is '7'."],
    ),
    "no card": (facts(driver=answers()), ["NVIDIA's driver finds no card."]),
    "an old driver": (
        facts(kernel_driver="470.82.01", driver=answers(H100, version=(11, 4))),
        ["driver 470.82.01 is too old: it runs CUDA 11.4 and older, and "],
    ),
    "missing libraries": (
        facts(driver=answers(H100), log=LOG),
        ["TensorFlow could not open libcublas.so.12, libcudnn.so.9 (pip install"],
    ),
    "an old card": (
        facts(driver=answers(K80)),
        ["compute capability 6.0 and above (Tesla K80: 3.7)."],
    ),
    "something else": (
        facts(driver=answers(H100, K80), log=FAILED),
        ["offers NVIDIA H100, Tesla K80, but TensorFlow does not take it: failed call"],
    ),
    "nothing that is known": (facts(driver=answers(H100)), ["and logs no reason."]),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason(name):
    known, said = REASONS[name]
    found = missing_gpu.reasons(known)
    assert len(found) == len(said)
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence and "\n" not in sentence, sentence


@pytest.mark.parametrize("cards", [(), (H100,)], ids=["no card", "a card"])
def test_a_card_is_looked_for_in_another_process(cards, monkeypatch):
    monkeypatch.setattr(cuda_driver, "ask", lambda: answers(*cards))
    monkeypatch.setattr(environment, "nvidia_driver", lambda: "580.65.06")
    monkeypatch.setattr(missing_gpu, "tensorflow_log", lambda: LOG)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = missing_gpu.find()
    assert (found.visible, found.kernel_driver) == ("0", "580.65.06")
    built_with_cuda = found.built_for is not None
    assert found.log == (LOG if cards and built_with_cuda else "")
    assert found.oldest is None or found.oldest >= (3, 5)


STUBS = {
    "libcuda.so.1": """
        #include <string.h>
        int cuInit(unsigned flags) { return 0; }
        int cuDriverGetVersion(int *number) { *number = 12080; return 0; }
        int cuDeviceGetCount(int *count) { *count = 1; return 0; }
        int cuDeviceGet(int *device, int index) { *device = index; return 0; }
        int cuDeviceGetName(char *name, int length, int device) {
          strncpy(name, "a card of stubs", length); return 0; }
        int cuDeviceTotalMem_v2(size_t *bytes, int device) {
          *bytes = (size_t)80 << 30; return 0; }
        int cuDeviceGetAttribute(int *value, int attribute, int device) {
          *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; return 0; }
        int cuDeviceGetPCIBusId(char *id, int length, int device) {
          strncpy(id, "0000:00:00.0", length); return 0; }
        int cuDevicePrimaryCtxRetain(void **context, int device) {
          *context = (void *)8; return 0; }
        int cuGetErrorName(int status, const char **name) { *name = "E"; return 0; }
        int cuGetErrorString(int status, const char **s) { *s = "E"; return 0; }
    """,
    "libnvidia-ml.so.1": """
        int nvmlInit_v2() { return 0; }
        int nvmlInit() { return 0; }
        int nvmlShutdown() { return 0; }
    """,
}


@pytest.mark.slow  # starts a TensorFlow that logs
def test_tensorflow_beside_a_driver_of_stubs_names_what_it_lacks(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if not compiler or missing_gpu.find().built_for is None:
        pytest.skip("needs a C compiler, and a TensorFlow that was built for CUDA")
    for name, source in STUBS.items():
        command = [compiler, "-xc", "-", "-shared", "-fPIC", "-o", tmp_path / name]
        subprocess.run(command, input=source, text=True, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    missing = missing_gpu.missing_libraries(missing_gpu.tensorflow_log())
    assert any(name.startswith("libcublas.so.") for name in missing), missing
    assert any(name.startswith("libcudnn.so.") for name in missing), missing
