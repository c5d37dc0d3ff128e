"""The driver's library, played by an object: no card is needed."""

import pytest

from mp_loop.hardware import cuda_driver

H100 = cuda_driver.Card("NVIDIA H100 80GB HBM3", (9, 0), 85_045_346_304)
T4 = cuda_driver.Card("Tesla T4", (7, 5), 15_828_320_256)
NO_DEVICE = 100


class Library:
    """Answers as libcuda.so.1 does: through pointers, and a status of 0."""

    def __init__(self, *cards, fails=None, named=True):
        self.cards, self.fails, self.named = cards, fails, named

    def __getattr__(self, name):
        def call(*arguments):
            if name == self.fails:
                return NO_DEVICE
            return getattr(type(self), f"_{name}")(self, *arguments) or 0

        return call

    def _cuDriverGetVersion(self, number):
        number._obj.value = 12_080

    def _cuInit(self, flags):
        assert flags == 0

    def _cuDeviceGetCount(self, count):
        count._obj.value = len(self.cards)

    def _cuDeviceGet(self, device, index):
        device._obj.value = index

    def _cuDeviceGetName(self, name, length, device):
        name.value = self.cards[device.value].model.encode()[:length]

    def _cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = self.cards[device.value].memory_bytes

    def _cuDeviceGetAttribute(self, value, attribute, device):
        position = {75: 0, 76: 1}[attribute]
        value._obj.value = self.cards[device.value].compute_capability[position]

    def _cuGetErrorName(self, status, name):
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return int(not self.named)


@pytest.mark.parametrize("cards", [(), (H100,), (H100, T4)], ids=len)
def test_it_names_every_card(cards):
    answer = cuda_driver.ask(lambda name: Library(*cards))
    assert answer == cuda_driver.Answer(True, None, (12, 8), cards)


@pytest.mark.parametrize(
    "named, said", [(True, "CUDA_ERROR_NO_DEVICE"), (False, "error 100")]
)
@pytest.mark.parametrize("function", ["cuInit", "cuDeviceTotalMem_v2"])
def test_what_the_driver_refuses_is_an_answer(function, named, said):
    library = Library(T4, fails=function, named=named)
    answer = cuda_driver.ask(lambda name: library)
    error = f"{function} returns {said}"
    assert answer == cuda_driver.Answer(True, error, (12, 8))


def test_without_a_driver():
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    answer = cuda_driver.ask(load)
    error = "libcuda.so.1: cannot open shared object file"
    assert answer == cuda_driver.Answer(False, error)
