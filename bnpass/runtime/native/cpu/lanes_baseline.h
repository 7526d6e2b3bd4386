// Eight doubles as four pairs, in plain code that compilers turn into SSE2 or NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/element.h"
#include "cpu/kernels.h"
#include "cpu/rounding.h"

namespace bnpass::cpu {
namespace {

struct Baseline {
  typedef double Pair __attribute__((vector_size(16)));
  struct V {
    Pair pairs[lanes / 2];
  };
  static constexpr size_t unroll = 1;

  static V zero() { return all(0); }
  static V all(double value) {
    return with([&](size_t) { return Pair{value, value}; });
  }
  static V add(const V& a, const V& b) {
    return with([&](size_t i) { return a.pairs[i] + b.pairs[i]; });
  }
  static V sub(const V& a, const V& b) {
    return with([&](size_t i) { return a.pairs[i] - b.pairs[i]; });
  }
  static V mul(const V& a, const V& b) {
    return with([&](size_t i) { return a.pairs[i] * b.pairs[i]; });
  }
  static V fma(const V& a, const V& b, const V& c) {
    return with([&](size_t i) { return a.pairs[i] * b.pairs[i] + c.pairs[i]; });
  }
  static V minus_product(const V& c, const V& a, const V& b) {
    return with([&](size_t i) { return c.pairs[i] - a.pairs[i] * b.pairs[i]; });
  }
  /// The first n lanes of a, and the others of b.
  static V blend(size_t n, const V& a, V b) {
    for (size_t i = 0; i < n; ++i) b.pairs[i / 2][i % 2] = a.pairs[i / 2][i % 2];
    return b;
  }
  static V keep(V a, size_t n) {
    for (size_t i = n; i < lanes; ++i) a.pairs[i / 2][i % 2] = 0;
    return a;
  }

  /// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)), as by all instruction sets.
  static double total(const V& a) {
    const Pair pair = (a.pairs[0] + a.pairs[2]) + (a.pairs[1] + a.pairs[3]);
    return pair[0] + pair[1];
  }

  template <class T>
  static V load(const T* from) {
    return with([&](size_t i) { return Pair{of(from[2 * i]), of(from[2 * i + 1])}; });
  }
  template <class T>
  static V load(const T* from, size_t n) {
    V result = zero();
    for (size_t i = 0; i < n; ++i) result.pairs[i / 2][i % 2] = of(from[i]);
    return result;
  }
  template <class T>
  static void store(T* to, const V& a) {
    for (size_t i = 0; i < lanes; ++i) put(to + i, a.pairs[i / 2][i % 2]);
  }
  template <class T>
  static void store(T* to, const V& a, size_t n) {
    for (size_t i = 0; i < n; ++i) put(to + i, a.pairs[i / 2][i % 2]);
  }
  template <class T>
  static void stream(T* to, const V& a) {
    store(to, a);
  }
  static void fence() {}

 private:
  template <class F>
  static V with(const F& pair) {
    return {{pair(0), pair(1), pair(2), pair(3)}};
  }

  template <class To, class From>
  static To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
  }

  static double of(double x) { return x; }
  static double of(float x) { return static_cast<double>(x); }
  static double of(BFloat16 x) { return static_cast<double>(same_bits<float>(uint32_t{x.bits} << 16)); }
  static double of(Half x) {
    const uint64_t sign = uint64_t{x.bits & 0x8000u} << 48, magnitude = x.bits & 0x7fffu;
    const uint64_t rebias = magnitude < 0x7c00 ? 1023 - 15 : 2047 - 31;  // infinity and NaN keep all exponent bits
    const uint64_t normal = (magnitude << 42) + (rebias << 52);
    const auto subnormal = same_bits<uint64_t>(static_cast<double>(static_cast<int32_t>(magnitude)) * 0x1p-24);
    return same_bits<double>(sign | (magnitude < 0x400 ? subnormal : normal));
  }

  static double rounded(double x, Format format) {
    const double exponent = same_bits<double>(same_bits<uint64_t>(x) & (uint64_t{2047} << 52));
    const double above = exponent > format.least ? exponent : format.least;
    const double c = (above < far_too_large ? above : far_too_large) * format.spread;
    return same_bits<double>(same_bits<uint64_t>((x + c) - c) | (same_bits<uint64_t>(x) & (uint64_t{1} << 63)));
  }

  static void put(double* to, double x) { *to = x; }
  static void put(float* to, double x) { *to = static_cast<float>(x); }
  static void put(BFloat16* to, double x) {
    to->bits = static_cast<uint16_t>(same_bits<uint32_t>(static_cast<float>(rounded(x, bfloat16))) >> 16);
  }
  static void put(Half* to, double x) {
    const auto exact = same_bits<uint64_t>(rounded(x, binary16));
    const auto sign = static_cast<uint16_t>(exact >> 48 & 0x8000u);
    const double magnitude = same_bits<double>(exact & ~(uint64_t{1} << 63));
    uint64_t bits = 0x7c00;
    if (magnitude < 0x1p-14) {
      bits = static_cast<uint64_t>(magnitude * 0x1p24);
    } else if (magnitude < 0x1p16) {
      bits = (same_bits<uint64_t>(magnitude) - (uint64_t{1023 - 15} << 52)) >> 42;
    } else if (magnitude != magnitude) {
      bits = 0x7e00;
    }
    to->bits = static_cast<uint16_t>(sign | bits);
  }
};

}  // namespace
}  // namespace bnpass::cpu
