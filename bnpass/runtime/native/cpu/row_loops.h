// The loops over rows of the tables in kernels.h. Included behind the parts of loops.
#pragma once

namespace bnpass::cpu {
namespace {

template <class L, class T>
struct RowLoops : LoopParts<L, T> {
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

  /// Columns of a step, as far as the registers hold their sums.
  static constexpr size_t step = (L::unroll > 1 ? 2 : 1) * lanes;

  /// Asks for the R rows behind R rows, one behind the other, up to the second-level cache: the hardware loses track of
  /// streams that take turns.
  template <size_t R>
  class RowsAhead {
   public:
    RowsAhead(const T* rows, size_t pitch, size_t n) : row_(rows + R * pitch), pitch_(pitch), n_(n) {}
    /// The part that belongs to a step in R rows.
    void advance(size_t columns) {
#pragma GCC unroll 16
      for (size_t i = 0; i < R * columns; i += line) __builtin_prefetch(row_ + column_ + i, 0, 2);
      column_ += R * columns;
      if (column_ >= n_) column_ -= n_, row_ += pitch_;
    }

   private:
    const T* row_;
    size_t pitch_, n_, column_ = 0;
  };

  /// Adds term(row, j, load, sums) over R rows to the sums of each column.
  template <size_t R, class Prefetch, class Term>
  static void add_rows(size_t n, double* sum_a, double* sum_b, Prefetch prefetch, const Term& term) {
    const auto columns = [&](size_t j, auto steps, const auto& load) {
      constexpr size_t K = decltype(steps)::value;
      prefetch(K * lanes);
      Sums s[K];
#pragma GCC unroll 2
      for (size_t k = 0; k < K; ++k) s[k] = {L::load(sum_a + j + k * lanes), L::load(sum_b + j + k * lanes)};
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (size_t k = 0; k < K; ++k) term(r, j + k * lanes, load, s[k]);
      }
#pragma GCC unroll 2
      for (size_t k = 0; k < K; ++k) {
        L::store(sum_a + j + k * lanes, s[k].a);
        L::store(sum_b + j + k * lanes, s[k].b);
      }
    };
    using One = std::integral_constant<size_t, 1>;
    size_t j = 0;
    for (; j + step <= n; j += step) columns(j, std::integral_constant<size_t, step / lanes>{}, Whole{});
    for (; j + lanes <= n; j += lanes) columns(j, One{}, Whole{});
    if (j < n) columns(j, One{}, Part{n - j});
  }

  /// Calls add(first row, number of rows) for several rows at a time.
  template <size_t together, class Add>
  static void by_rows(size_t rows, const Add& add) {
    size_t r = 0;
    for (; r + together <= rows; r += together) add(r, std::integral_constant<size_t, together>{});
    for (; r < rows; ++r) add(r, std::integral_constant<size_t, 1>{});
  }

  static void row_sums(const void* X, size_t rows, size_t pitch, size_t n, const double* shift, double* sum,
                       double* square) {
    by_rows<8>(rows, [&](size_t first, auto together) {
      const T* x = elements(X) + first * pitch;
      constexpr size_t R = decltype(together)::value;
      RowsAhead<R> ahead(x, pitch, n);
      const auto prefetch = [&](size_t columns) { ahead.advance(columns); };
      add_rows<R>(n, sum, square, prefetch, [&](size_t r, size_t j, const auto& load, Sums& s) {
        const V centred = load.kept(L::sub(load(x + r * pitch + j), L::load(shift + j)));
        s.a = L::add(s.a, centred);
        s.b = L::fma(centred, centred, s.b);
      });
    });
  }

  static void row_gradient_sums(const void* dY, const void* X, size_t rows, size_t pitch, size_t n, const double* mean,
                                double* sum_dY, double* sum_dYX) {
    by_rows<4>(rows, [&](size_t first, auto together) {
      const T* dy = elements(dY) + first * pitch;
      const T* x = elements(X) + first * pitch;
      constexpr size_t R = decltype(together)::value;
      RowsAhead<R> ahead_dy(dy, pitch, n), ahead_x(x, pitch, n);
      const auto prefetch = [&](size_t columns) {
        ahead_dy.advance(columns);
        ahead_x.advance(columns);
      };
      add_rows<R>(n, sum_dY, sum_dYX, prefetch, [&](size_t r, size_t j, const auto& load, Sums& s) {
        const V gradient = load(dy + r * pitch + j);
        s.a = L::add(s.a, gradient);
        s.b = L::fma(gradient, load.kept(L::sub(load(x + r * pitch + j), L::load(mean + j))), s.b);
      });
    });
  }

  /// For a row that begins with an element: further in the same stretch, or in the same place of a later row.
  static Ahead in_rows(const T* from, size_t first, size_t rows, size_t pitch, size_t n) {
    if (pitch == n) return in_stretch(from + first, rows * pitch - first);
    const size_t later = first + (1 + 2048 / sizeof(T) / (n + 1)) * pitch;
    return later < rows * pitch ? Ahead{from + later, n} : Ahead{from, 0};
  }

  /// Writes value(j, load) for 0 <= j < n; ahead(j) once per cache line.
  template <class Ahead, class Value>
  static void write(size_t n, T* to, bool stream, const Ahead& ahead, const Value& value) {
    size_t j = 0;
    const auto lines = [&](const auto& put) {
      for (; j + line <= n; j += line) {
        ahead(j);
#pragma GCC unroll 4
        for (size_t i = 0; i < line; i += lanes) put(to + j + i, value(j + i, Whole{}));
      }
      for (; j + lanes <= n; j += lanes) put(to + j, value(j, Whole{}));
    };
    if (stream || n >= aligned_from) {
      j = std::min(n, head(to));
      if (j > 0) L::store(to, value(0, Part{j}), j);
    }
    if (stream) {
      lines([](T* at, const V& values) { L::stream(at, values); });
    } else {
      lines([](T* at, const V& values) { L::store(at, values); });
    }
    if (j < n) L::store(to + j, value(j, Part{n - j}), n - j);
  }

  /// As write, for rows: value(element, column, load), ahead_of(element)(j). Rows without gaps are cut where lanes are
  /// aligned, so that all of them are written whole: a line that is streamed in parts costs several.
  template <class AheadOf, class Value>
  static void write_rows(size_t rows, size_t pitch, size_t n, T* to, bool stream, const AheadOf& ahead_of,
                         const Value& value) {
    const size_t cut = pitch == n && n % lanes == 0 ? head(to) : 0;
    const auto part = [&](size_t first, size_t column, size_t length) {
      write(length, to + first, stream, ahead_of(first),
            [&](size_t j, const auto& load) { return value(first + j, column + j, load); });
    };
    if (cut > 0) part(0, 0, cut);
    for (size_t r = 0; r < rows; ++r) part(r * pitch + cut, cut, r + 1 < rows ? n : n - cut);
  }
  /// A vector over columns, aligned as another one is.
  class Column {
   public:
    explicit Column(const double* like) : begin_(memory_ + reinterpret_cast<uintptr_t>(like) / sizeof(double) % lanes) {}
    /// Writes value(j) for all columns, and for those behind the last that lanes reach.
    template <class Value>
    const double* fill(size_t n, const Value& value) {
      for (size_t j = 0; j < n + lanes; ++j) begin_[j] = value(j);
      return begin_;
    }

   private:
    alignas(64) double memory_[lanes + max_columns + lanes];
    double* begin_;
  };

  static void row_normalize(const void* X, size_t rows, size_t pitch, size_t n, const double* mean,
                            const double* factor, const double* B, void* Y, bool stream) {
    const T* x = elements(X);
    const auto ahead_of = [&](size_t first) { return in_rows(x, first, rows, pitch, n); };
    if constexpr (multiplied_out) {
      Column column(B);
      const double* offset = column.fill(n, [&](size_t j) { return offset_of_Y(mean[j], factor[j], B[j]); });
      write_rows(rows, pitch, n, static_cast<T*>(Y), stream, ahead_of, [&](size_t i, size_t j, const auto& load) {
        return L::fma(L::load(factor + j), load(x + i), L::load(offset + j));
      });
    } else {
      write_rows(rows, pitch, n, static_cast<T*>(Y), stream, ahead_of, [&](size_t i, size_t j, const auto& load) {
        return L::fma(L::load(factor + j), L::sub(load(x + i), L::load(mean + j)), L::load(B + j));
      });
    }
  }

  static void row_gradient(const void* dY, const void* X, size_t rows, size_t pitch, size_t n, const double* mean,
                           const double* factor, const double* shift, const double* slope, void* dX, bool stream) {
    const T* dy = elements(dY);
    const T* x = elements(X);
    const auto ahead_of = [&](size_t first) {
      const Ahead ahead_dy = in_rows(dy, first, rows, pitch, n), ahead_x = in_rows(x, first, rows, pitch, n);
      return [=](size_t j) { ahead_dy(j), ahead_x(j); };
    };
    if constexpr (multiplied_out) {
      Column slopes(factor), offsets(factor);
      const double* along = slopes.fill(n, [&](size_t j) { return along_x(factor[j], slope[j]); });
      const double* offset =
          offsets.fill(n, [&](size_t j) { return offset_of_dX(mean[j], factor[j], shift[j], slope[j]); });
      write_rows(rows, pitch, n, static_cast<T*>(dX), stream, ahead_of, [&](size_t i, size_t j, const auto& load) {
        const V rest = L::fma(L::load(along + j), load(x + i), L::load(offset + j));
        return L::fma(L::load(factor + j), load(dy + i), rest);
      });
    } else {
      write_rows(rows, pitch, n, static_cast<T*>(dX), stream, ahead_of, [&](size_t i, size_t j, const auto& load) {
        return gradient_of<L>(load(dy + i), load(x + i), L::load(mean + j), L::load(factor + j), L::load(shift + j),
                              L::load(slope + j));
      });
    }
  }
};

}  // namespace
}  // namespace bnpass::cpu
