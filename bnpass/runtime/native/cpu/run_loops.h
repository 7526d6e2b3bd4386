// The loops over runs of the tables in kernels.h. Included behind the parts of loops.
#pragma once

namespace bnpass::cpu {
namespace {

template <class L, class T>
struct RunLoops : LoopParts<L, T> {
  using Parts = LoopParts<L, T>;
  using V = typename L::V;
  using Whole = typename Parts::Whole;
  using Part = typename Parts::Part;
  using Sums = typename Parts::Sums;
  using Ahead = typename Parts::Ahead;
  using Parts::elements;
  using Parts::in_stretch;
  using Parts::line;
  using Parts::aligned_from;
  using Parts::head;
  using Parts::multiplied_out;

  /// Adds term(j, load, sums) over 0 <= j < n to sums, or to nothing; many terms in several accumulators.
  template <class Term>
  static void add_up(size_t n, double* to, bool anew, const Term& term) {
    Sums total = anew ? Sums{L::zero(), L::zero()} : Sums{L::load(to), L::load(to + lanes)};
    size_t j = 0;
    if (n >= 2 * L::unroll * lanes) {
      Sums sums[L::unroll];
      for (Sums& s : sums) s = {L::zero(), L::zero()};
      for (; j + L::unroll * lanes <= n; j += L::unroll * lanes) {
#pragma GCC unroll 4
        for (size_t u = 0; u < L::unroll; ++u) term(j + u * lanes, Whole{}, sums[u]);
      }
#pragma GCC unroll 4
      for (const Sums& s : sums) total = {L::add(total.a, s.a), L::add(total.b, s.b)};
    }
    for (; j + lanes <= n; j += lanes) term(j, Whole{}, total);
    if (j < n) term(j, Part{n - j}, total);
    L::store(to, total.a);
    L::store(to + lanes, total.b);
  }

  static void run_sums(const void* X, size_t channels, size_t stride, size_t n, const double* shift, double* sums,
                       bool anew) {
    for (size_t c = 0; c < channels; ++c) {
      const T* x = elements(X) + c * stride;
      const V k = L::all(shift[c]);
      add_up(n, sums + c * 2 * lanes, anew, [&](size_t j, const auto& load, Sums& s) {
        const V centred = load.kept(L::sub(load(x + j), k));
        s.a = L::add(s.a, centred);
        s.b = L::fma(centred, centred, s.b);
      });
    }
  }

  static void run_gradient_sums(const void* dY, const void* X, size_t channels, size_t stride, size_t n,
                                const double* mean, double* sums, bool anew) {
    for (size_t c = 0; c < channels; ++c) {
      const T* dy = elements(dY) + c * stride;
      const T* x = elements(X) + c * stride;
      const V m = L::all(mean[c]);
      add_up(n, sums + c * 2 * lanes, anew, [&](size_t j, const auto& load, Sums& s) {
        const V gradient = load(dy + j);
        s.a = L::add(s.a, gradient);
        s.b = L::fma(gradient, load.kept(L::sub(load(x + j), m)), s.b);
      });
    }
  }

  static void run_totals(const double* sums, size_t channels, double* a, double* b) {
    for (size_t c = 0; c < channels; ++c, sums += 2 * lanes) {
      a[c] = L::total(L::load(sums));
      b[c] = L::total(L::load(sums + lanes));
    }
  }

  /// What a formula takes from the channel, in all lanes.
  template <size_t N>
  struct Constants {
    V of[N];
  };

  /// The first n lanes of a, and the others of b.
  template <size_t N>
  static Constants<N> blended(size_t n, const Constants<N>& a, Constants<N> b) {
    for (size_t i = 0; i < N; ++i) b.of[i] = L::blend(n, a.of[i], b.of[i]);
    return b;
  }

  /// Writes value(constants, j, load) for channels that lie one behind the other, with constants_of(channel); ahead(j)
  /// about once per cache line. Lanes over the border of two channels take their constants from both.
  template <class Ahead, class ConstantsOf, class Value>
  static void write_channels(size_t channels, size_t n, T* to, bool stream, const Ahead& ahead,
                             const ConstantsOf& constants_of, const Value& value) {
    auto constants = constants_of(0);
    const auto write_all = [&](const auto& put) {
      size_t j = stream || channels * n >= aligned_from ? std::min(n, head(to)) : 0;
      if (j > 0) L::store(to, value(constants, 0, Part{j}), j);
      for (size_t c = 1, end = n;; ++c, end += n) {
        for (; j + line <= end; j += line) {
          ahead(j);
#pragma GCC unroll 4
          for (size_t i = 0; i < line; i += lanes) put(to + j + i, value(constants, j + i, Whole{}));
        }
        for (; j + lanes <= end; j += lanes) put(to + j, value(constants, j, Whole{}));
        if (c == channels) {
          if (j < end) L::store(to + j, value(constants, j, Part{end - j}), end - j);
          return;
        }
        const auto next = constants_of(c);
        if (j < end) {
          put(to + j, value(blended(end - j, constants, next), j, Whole{}));
          j += lanes;
        }
        constants = next;
      }
    };
    if (stream) {
      write_all([](T* at, const V& values) { L::stream(at, values); });
    } else {
      write_all([](T* at, const V& values) { L::store(at, values); });
    }
  }

  static void run_normalize(const void* X, size_t channels, size_t stride, size_t n, const double* mean,
                            const double* factor, const double* B, void* Y, bool stream) {
    const size_t some = stride == n ? channels : 1;
    for (size_t c = 0; c < channels; c += some) {
      const T* x = elements(X) + c * stride;
      T* y = static_cast<T*>(Y) + c * stride;
      const Ahead ahead = in_stretch(x, (channels - 1 - c) * stride + n);
      if constexpr (multiplied_out) {
        const auto constants_of = [&](size_t i) {
          return Constants<2>{{L::all(factor[c + i]), L::all(offset_of_Y(mean[c + i], factor[c + i], B[c + i]))}};
        };
        write_channels(some, n, y, stream, ahead, constants_of, [&](const auto& k, size_t j, const auto& load) {
          return L::fma(k.of[0], load(x + j), k.of[1]);
        });
      } else {
        const auto constants_of = [&](size_t i) {
          return Constants<3>{{L::all(factor[c + i]), L::all(mean[c + i]), L::all(B[c + i])}};
        };
        write_channels(some, n, y, stream, ahead, constants_of, [&](const auto& k, size_t j, const auto& load) {
          return L::fma(k.of[0], L::sub(load(x + j), k.of[1]), k.of[2]);
        });
      }
    }
  }

  static void run_gradient(const void* dY, const void* X, size_t channels, size_t stride, size_t n, const double* mean,
                           const double* factor, const double* shift, const double* slope, void* dX, bool stream) {
    const size_t some = stride == n ? channels : 1;
    for (size_t c = 0; c < channels; c += some) {
      const T* dy = elements(dY) + c * stride;
      const T* x = elements(X) + c * stride;
      T* dx = static_cast<T*>(dX) + c * stride;
      const size_t reach = (channels - 1 - c) * stride + n;
      const Ahead ahead_dy = in_stretch(dy, reach), ahead_x = in_stretch(x, reach);
      const auto ahead = [&](size_t j) { ahead_dy(j), ahead_x(j); };
      if constexpr (multiplied_out) {
        const auto constants_of = [&](size_t i) {
          const size_t at = c + i;
          return Constants<3>{{L::all(factor[at]), L::all(along_x(factor[at], slope[at])),
                              L::all(offset_of_dX(mean[at], factor[at], shift[at], slope[at]))}};
        };
        write_channels(some, n, dx, stream, ahead, constants_of, [&](const auto& k, size_t j, const auto& load) {
          return L::fma(k.of[0], load(dy + j), L::fma(k.of[1], load(x + j), k.of[2]));
        });
      } else {
        const auto constants_of = [&](size_t i) {
          const size_t at = c + i;
          return Constants<4>{{L::all(mean[at]), L::all(factor[at]), L::all(shift[at]), L::all(slope[at])}};
        };
        write_channels(some, n, dx, stream, ahead, constants_of, [&](const auto& k, size_t j, const auto& load) {
          return gradient_of<L>(load(dy + j), load(x + j), k.of[0], k.of[1], k.of[2], k.of[3]);
        });
      }
    }
  }
};

}  // namespace
}  // namespace bnpass::cpu
