// What the loops over runs and over rows have in common, for lanes L (an instruction set) and elements T.
// Included once per instruction set, where the compiler's target is set; so everything in here is local to its file.
#pragma once

namespace bnpass::cpu {
namespace {

template <class L, class T>
struct LoopParts {
  using V = typename L::V;

  static const T* elements(const void* values) { return static_cast<const T*>(values); }

  /// All lanes of an element pointer, or the first n of them.
  struct Whole {
    V operator()(const T* from) const { return L::load(from); }
    V kept(const V& a) const { return a; }
  };
  struct Part {
    size_t n;
    V operator()(const T* from) const { return L::load(from, n); }
    V kept(const V& a) const { return L::keep(a, n); }
  };

  struct Sums {
    V a, b;
  };

  /// Elements of a cache line.
  static constexpr size_t line = 64 / sizeof(T);

  /// Asks for what is read some time later: the hardware stops at the end of each page, which shows where there are
  /// writes as well (and not in sums).
  struct Ahead {
    const T* later;
    size_t reach;
    void operator()(size_t j) const {
      if (j < reach) __builtin_prefetch(later + j);
    }
  };

  /// For a stretch of elements.
  static Ahead in_stretch(const T* from, size_t elements) {
    constexpr size_t distance = 2048 / sizeof(T);
    return elements > distance ? Ahead{from + distance, elements - distance} : Ahead{from, 0};
  }

  /// Stretches that are worth a part of the lanes at their beginning, so that no other lanes cross a cache line.
  static constexpr size_t aligned_from = 8 * lanes;

  /// Elements in front of the first address where lanes are aligned.
  static size_t head(const T* to) {
    const size_t past = reinterpret_cast<uintptr_t>(to) / sizeof(T) % lanes;
    return past == 0 ? 0 : lanes - past;
  }

  /// Formulas multiplied out take fewer steps, and fewer vectors of columns. What that loses in double, of |mean|·factor,
  /// is far below what narrower elements can show; elements that are double themselves keep the centred form.
  static constexpr bool multiplied_out = sizeof(T) < sizeof(double);
};

/// dX as it stands in kernels.h.
template <class L, class V>
V gradient_of(const V& dy, const V& x, const V& mean, const V& factor, const V& shift, const V& slope) {
  return L::mul(factor, L::minus_product(L::sub(dy, shift), slope, L::sub(x, mean)));
}

/// Multiplied out, Y = factor·x + offset.
inline double offset_of_Y(double mean, double factor, double B) { return B - mean * factor; }

/// Multiplied out, dX = factor·dy + along_x·x + offset.
inline double along_x(double factor, double slope) { return -factor * slope; }
inline double offset_of_dX(double mean, double factor, double shift, double slope) {
  return factor * (slope * mean - shift);
}

}  // namespace
}  // namespace bnpass::cpu
