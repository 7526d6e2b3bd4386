// Eight doubles in two registers of AVX-512VL: as for AVX2, with twice as many registers, and masks for parts of the
// lanes. Included where the compiler's target is set to AVX-512, and nowhere else.
#pragma once

#include "cpu/lanes_avx2.h"

namespace bnpass::cpu {
namespace {

struct Avx512Pairs : Avx2 {
  static constexpr size_t unroll = 4;
  using Avx2::load;
  using Avx2::store;

  static V blend(size_t n, V a, V b) {
    return {_mm256_mask_mov_pd(b.low, first(n), a.low), _mm256_mask_mov_pd(b.high, first(n) >> 4, a.high)};
  }
  static V keep(V a, size_t n) {
    return {_mm256_maskz_mov_pd(first(n), a.low), _mm256_maskz_mov_pd(first(n) >> 4, a.high)};
  }

  static V load(const double* from, size_t n) {
    return {_mm256_maskz_loadu_pd(first(n), from), _mm256_maskz_loadu_pd(first(n) >> 4, from + 4)};
  }
  static V load(const float* from, size_t n) { return of(_mm256_maskz_loadu_ps(first(n), from)); }
  static V load(const Half* from, size_t n) { return of(_mm256_cvtph_ps(_mm_maskz_loadu_epi16(first(n), from))); }
  static V load(const BFloat16* from, size_t n) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(first(n), from));
    return of(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }

  static void store(double* to, V a, size_t n) {
    _mm256_mask_storeu_pd(to, first(n), a.low);
    _mm256_mask_storeu_pd(to + 4, first(n) >> 4, a.high);
  }
  static void store(float* to, V a, size_t n) { _mm256_mask_storeu_ps(to, first(n), single(a)); }
  static void store(Half* to, V a, size_t n) { _mm_mask_storeu_epi16(to, first(n), half(a)); }
  static void store(BFloat16* to, V a, size_t n) { _mm_mask_storeu_epi16(to, first(n), upper_half(a)); }

 private:
  static __mmask8 first(size_t n) { return static_cast<__mmask8>((1u << n) - 1); }
};

}  // namespace
}  // namespace bnpass::cpu
