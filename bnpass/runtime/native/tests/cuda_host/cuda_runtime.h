// What kernels see of CUDA (see cuda_runtime_api.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)

struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct HostIndex {
  unsigned x = 0;
};
extern HostIndex threadIdx, blockIdx, gridDim;

void __syncthreads();
inline void __threadfence() {}

using std::fabs;
using std::fma;
using std::sqrt;

template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
inline unsigned atomicAdd(unsigned* to, unsigned value) {
  const unsigned before = *to;
  *to += value;
  return before;
}

template <class To, class From>
To host_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return host_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return host_bits<unsigned>(value); }
inline long long __double_as_longlong(double value) { return host_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return host_bits<double>(bits); }
inline float __double2float_rz(double x) {
  const auto nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat16(float value);
