// Eight doubles in one AVX-512 register. Included where the compiler's target is set to AVX-512, and nowhere else.
#pragma once

namespace bnpass::cpu {
namespace {

struct Avx512 {
  using V = __m512d;
  static constexpr size_t unroll = 4;

  static V zero() { return _mm512_setzero_pd(); }
  static V all(double value) { return _mm512_set1_pd(value); }
  static V add(V a, V b) { return _mm512_add_pd(a, b); }
  static V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static V minus_product(V c, V a, V b) { return _mm512_fnmadd_pd(a, b, c); }
  /// The first n lanes of a, and the others of b.
  static V blend(size_t n, V a, V b) { return _mm512_mask_mov_pd(b, first(n), a); }
  static V keep(V a, size_t n) { return _mm512_maskz_mov_pd(first(n), a); }

  /// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)), as by all instruction sets.
  static double total(V a) {
    const __m256d halves = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d quarters = _mm_add_pd(_mm256_castpd256_pd128(halves), _mm256_extractf128_pd(halves, 1));
    return _mm_cvtsd_f64(_mm_add_sd(quarters, _mm_unpackhi_pd(quarters, quarters)));
  }

  static V load(const double* from) { return _mm512_loadu_pd(from); }
  static V load(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
  static V load(const Half* from) { return of(*from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
  static V load(const BFloat16* from) { return of(*from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

  static V load(const double* from, size_t n) { return _mm512_maskz_loadu_pd(first(n), from); }
  static V load(const float* from, size_t n) { return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(first(n), from)); }
  static V load(const Half* from, size_t n) { return of(*from, _mm_maskz_loadu_epi16(first(n), from)); }
  static V load(const BFloat16* from, size_t n) { return of(*from, _mm_maskz_loadu_epi16(first(n), from)); }

  static void store(double* to, V a) { _mm512_storeu_pd(to, a); }
  static void store(float* to, V a) { _mm256_storeu_ps(to, _mm512_cvtpd_ps(a)); }
  static void store(Half* to, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void store(BFloat16* to, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), upper_half(a)); }

  static void store(double* to, V a, size_t n) { _mm512_mask_storeu_pd(to, first(n), a); }
  static void store(float* to, V a, size_t n) { _mm256_mask_storeu_ps(to, first(n), _mm512_cvtpd_ps(a)); }
  static void store(Half* to, V a, size_t n) { _mm_mask_storeu_epi16(to, first(n), half(a)); }
  static void store(BFloat16* to, V a, size_t n) { _mm_mask_storeu_epi16(to, first(n), upper_half(a)); }

  static void stream(double* to, V a) { _mm512_stream_pd(to, a); }
  static void stream(float* to, V a) { _mm256_stream_ps(to, _mm512_cvtpd_ps(a)); }
  static void stream(Half* to, V a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void stream(BFloat16* to, V a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), upper_half(a)); }
  static void fence() { _mm_sfence(); }

 private:
  static __mmask8 first(size_t n) { return static_cast<__mmask8>((1u << n) - 1); }

  static V of(Half, __m128i bits) { return _mm512_cvtps_pd(_mm256_cvtph_ps(bits)); }
  static V of(BFloat16, __m128i bits) {
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }

  static V rounded(V x, Format format) {
    const V exponent = _mm512_and_pd(x, all(HUGE_VAL));
    const V power = _mm512_min_pd(_mm512_max_pd(exponent, all(format.least)), all(far_too_large));
    const V c = mul(power, all(format.spread));
    return _mm512_or_pd(sub(add(x, c), c), _mm512_and_pd(x, all(-0.0)));
  }

  static __m128i half(V a) {
    return _mm256_cvtps_ph(_mm512_cvtpd_ps(rounded(a, binary16)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m128i upper_half(V a) {
    return _mm256_cvtepi32_epi16(_mm256_srli_epi32(_mm256_castps_si256(_mm512_cvtpd_ps(rounded(a, bfloat16))), 16));
  }
};

}  // namespace
}  // namespace bnpass::cpu
