// Elements on the device: loads and stores of vectors, conversions, and the type in which each element is worked on.
//
// Where the processor has double at half the rate of float (compute capability 8.0, 9.0, 10.0), all sums and gradients
// are taken in double, and float is normalized in double. Elsewhere double runs at 1/32 or 1/64: a value is centred with
// a mean in two floats, short runs are summed in float and folded into double. The 16-bit types are normalized in float
// everywhere. Each result is rounded to its element once. What float cannot hold, such as the square of 1e30, goes
// through double after all.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/element.h"

#ifndef BNPASS_FAST_DOUBLE
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
#define BNPASS_FAST_DOUBLE 1
#else
#define BNPASS_FAST_DOUBLE 0
#endif
#endif

namespace bnpass::cuda {

constexpr bool kFastDouble = BNPASS_FAST_DOUBLE != 0;

/// The type in which elements are normalized, and the one in which they are summed up.
template <class T>
using Work = std::conditional_t<sizeof(T) == 8 || (kFastDouble && sizeof(T) == 4), double, float>;
template <class T>
using SumWork = std::conditional_t<sizeof(T) == 8 || kFastDouble, double, float>;

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
#ifdef __CUDACC__
__device__ inline float widen(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}
#else
__device__ inline float widen(Half x) { return half_to_float(x.bits); }
#endif

/// To the element, rounded once to nearest even.
template <class T>
__device__ T narrow(float x);
template <class T>
__device__ T narrow(double x);

template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
__device__ inline double narrow<double>(double x) {
  return x;
}
template <>
__device__ inline Half narrow<Half>(float x) {
#ifdef __CUDACC__
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  return {float_to_half(x)};
#endif
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDACC__
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  return {float_to_bfloat16(x)};
#endif
}
/// A float from which rounding to 16 bits gives what rounding x itself would give: truncated, and odd where inexact.
__device__ inline float to_odd(double x) {
  const float truncated = __double2float_rz(x);
  const bool exact = !(static_cast<double>(truncated) != x) || x != x;
  return exact ? truncated : __uint_as_float(__float_as_uint(truncated) | 1u);
}
template <>
__device__ inline Half narrow<Half>(double x) {
  return narrow<Half>(to_odd(x));
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(double x) {
  return narrow<BFloat16>(to_odd(x));
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <int BYTES>
struct BitsOf;
template <>
struct BitsOf<16> {
  using type = int4;
};
template <>
struct BitsOf<8> {
  using type = int2;
};
template <>
struct BitsOf<4> {
  using type = int;
};
template <>
struct BitsOf<2> {
  using type = short;
};

template <int V, class T>
__device__ inline Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

/// Reads what is not needed again soon.
template <int V, class T>
__device__ inline Pack<T, V> load_last(const T* from) {
  using Bits = typename BitsOf<static_cast<int>(sizeof(T) * V)>::type;
  const Bits bits = __ldcs(reinterpret_cast<const Bits*>(from));
  Pack<T, V> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

/// Writes past what the cache still holds of the inputs.
template <int V, class T>
__device__ inline void store(T* to, const Pack<T, V>& pack) {
  using Bits = typename BitsOf<static_cast<int>(sizeof(T) * V)>::type;
  Bits bits;
  memcpy(&bits, &pack, sizeof bits);
  __stcs(reinterpret_cast<Bits*>(to), bits);
}

}  // namespace bnpass::cuda
