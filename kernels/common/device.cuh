// The runtime, INFINITY, NAN and integers of fixed size, for nvcc, g++ (tests/cuda_emulator) and NVRTC, which has no
// headers of the host (LP64, as everywhere here).
#pragma once
#ifdef __CUDACC_RTC__
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#else
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#endif
