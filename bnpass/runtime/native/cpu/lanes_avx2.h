// Eight doubles in two AVX registers. Included where the compiler's target is set to AVX2, and nowhere else.
#pragma once

namespace bnpass::cpu {
namespace {

struct Avx2 {
  struct V {
    __m256d low, high;
  };
  static constexpr size_t unroll = 2;

  static V zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static V all(double value) { return {_mm256_set1_pd(value), _mm256_set1_pd(value)}; }
  static V add(V a, V b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
  /// By a unit that multiplies: where another one adds and converts, both are busy. Rounded once, as ever.
  static V sub(V a, V b) {
    const __m256d one = _mm256_set1_pd(1);
    return {_mm256_fmsub_pd(a.low, one, b.low), _mm256_fmsub_pd(a.high, one, b.high)};
  }
  static V mul(V a, V b) { return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)}; }
  static V fma(V a, V b, V c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static V minus_product(V c, V a, V b) {
    return {_mm256_fnmadd_pd(a.low, b.low, c.low), _mm256_fnmadd_pd(a.high, b.high, c.high)};
  }
  /// The first n lanes of a, and the others of b.
  static V blend(size_t n, V a, V b) {
    const V of_a = load(mask(n));
    return {_mm256_blendv_pd(b.low, a.low, of_a.low), _mm256_blendv_pd(b.high, a.high, of_a.high)};
  }
  static V keep(V a, size_t n) {
    const V kept = load(mask(n));
    return {_mm256_and_pd(a.low, kept.low), _mm256_and_pd(a.high, kept.high)};
  }

  /// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)), as by all instruction sets.
  static double total(V a) {
    const __m256d halves = _mm256_add_pd(a.low, a.high);
    const __m128d quarters = _mm_add_pd(_mm256_castpd256_pd128(halves), _mm256_extractf128_pd(halves, 1));
    return _mm_cvtsd_f64(_mm_add_sd(quarters, _mm_unpackhi_pd(quarters, quarters)));
  }

  static V load(const double* from) { return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)}; }
  static V load(const float* from) {
    return {_mm256_cvtps_pd(_mm_loadu_ps(from)), _mm256_cvtps_pd(_mm_loadu_ps(from + 4))};
  }
  static V load(const Half* from) { return of(_mm256_cvtph_ps(bits(from))); }
  static V load(const BFloat16* from) {
    return of(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits(from)), 16)));
  }

  static void store(double* to, V a) {
    _mm256_storeu_pd(to, a.low);
    _mm256_storeu_pd(to + 4, a.high);
  }
  static void store(float* to, V a) { _mm256_storeu_ps(to, single(a)); }
  static void store(Half* to, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void store(BFloat16* to, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), upper_half(a)); }

  static void stream(double* to, V a) {
    _mm256_stream_pd(to, a.low);
    _mm256_stream_pd(to + 4, a.high);
  }
  static void stream(float* to, V a) { _mm256_stream_ps(to, single(a)); }
  static void stream(Half* to, V a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void stream(BFloat16* to, V a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), upper_half(a)); }
  static void fence() { _mm_sfence(); }

  /// A part of the lanes, by way of memory that is long enough.
  template <class T>
  static V load(const T* from, size_t n) {
    alignas(32) T whole[lanes] = {};
    std::memcpy(whole, from, n * sizeof(T));
    return load(whole);
  }
  template <class T>
  static void store(T* to, V a, size_t n) {
    alignas(32) T whole[lanes];
    store(whole, a);
    std::memcpy(to, whole, n * sizeof(T));
  }

 protected:
  /// All bits of the first n doubles set, the others 0.
  static const double* mask(size_t n) {
    alignas(32) static constexpr int64_t ones_then_zeros[2 * lanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return reinterpret_cast<const double*>(ones_then_zeros + lanes - n);
  }

  static __m128i bits(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static V of(__m256 a) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))};
  }
  static __m256 single(V a) { return _mm256_set_m128(_mm256_cvtpd_ps(a.high), _mm256_cvtpd_ps(a.low)); }

  static __m256d rounded(__m256d x, Format format) {
    const __m256d exponent = _mm256_and_pd(x, _mm256_set1_pd(HUGE_VAL));
    const __m256d power = _mm256_min_pd(_mm256_max_pd(exponent, _mm256_set1_pd(format.least)),
                                        _mm256_set1_pd(far_too_large));
    const __m256d c = _mm256_mul_pd(power, _mm256_set1_pd(format.spread));
    return _mm256_or_pd(_mm256_sub_pd(_mm256_add_pd(x, c), c), _mm256_and_pd(x, _mm256_set1_pd(-0.0)));
  }
  static __m256 rounded(V a, Format format) { return single({rounded(a.low, format), rounded(a.high, format)}); }

  static __m128i half(V a) {
    return _mm256_cvtps_ph(rounded(a, binary16), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m128i upper_half(V a) {
    const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(rounded(a, bfloat16)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

}  // namespace
}  // namespace bnpass::cpu
