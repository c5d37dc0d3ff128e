"""Lines of /proc/cpuinfo of several processors, for tests."""

ZEN_3 = "flags : fpu avx2 fma\n"
ICE_LAKE = "flags : fpu avx2 fma avx512f avx512_vnni\n"
SAPPHIRE_RAPIDS = "flags : fpu avx2 avx512_vnni avx512_bf16 amx_bf16\n"
ARM = "Features : fp asimd bf16\n"
