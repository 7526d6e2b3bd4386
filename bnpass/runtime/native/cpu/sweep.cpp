#include "cpu/sweep.h"

#include "cpu/row_sweep.h"
#include "cpu/run_sweep.h"

namespace bnpass::cpu {

void Sweep::sums(const Tile& tile, const void* X, const double* shift, double* sum, double* square) const {
  if (cut.by_rows) {
    const RowSweep rows(cut, tile);
    RowSweep::Columns shifts, a, b;
    const double* shift_of = rows.spread(shift, shifts);
    rows.clear(a);
    rows.clear(b);
    rows.forwards([&](size_t first, size_t count, size_t pitch, size_t columns) {
      kernels.row_sums(at(X, first), count, pitch, columns, shift_of, a.values, b.values);
    });
    rows.gather(a, sum);
    rows.gather(b, square);
  } else {
    RunSweep(cut, tile).sums(kernels, sum, square, [&](size_t first, size_t length, double* sums, bool anew) {
      kernels.run_sums(at(X, first), tile.channels, cut.view.inner, length, shift, sums, anew);
    });
  }
}

void Sweep::gradient_sums(const Tile& tile, const void* dY, const void* X, const double* mean, double* sum_dY,
                          double* sum_dYX) const {
  if (cut.by_rows) {
    const RowSweep rows(cut, tile);
    RowSweep::Columns means, a, b;
    const double* mean_of = rows.spread(mean, means);
    rows.clear(a);
    rows.clear(b);
    rows.forwards([&](size_t first, size_t count, size_t pitch, size_t columns) {
      kernels.row_gradient_sums(at(dY, first), at(X, first), count, pitch, columns, mean_of, a.values, b.values);
    });
    rows.gather(a, sum_dY);
    rows.gather(b, sum_dYX);
  } else {
    RunSweep(cut, tile).sums(kernels, sum_dY, sum_dYX, [&](size_t first, size_t length, double* sums, bool anew) {
      kernels.run_gradient_sums(at(dY, first), at(X, first), tile.channels, cut.view.inner, length, mean, sums, anew);
    });
  }
}

void Sweep::normalize(const Tile& tile, const void* X, const double* mean, const double* factor, const double* B,
                      void* Y) const {
  if (cut.by_rows) {
    const RowSweep rows(cut, tile);
    RowSweep::Columns means, factors, Bs;
    const size_t behind = behind_aligned(at(Y, rows.first()));
    const double* mean_of = rows.spread(mean, means, behind);
    const double* factor_of = rows.spread(factor, factors, behind);
    const double* B_of = rows.spread(B, Bs, behind);
    rows.backwards([&](size_t first, size_t count, size_t pitch, size_t columns) {
      kernels.row_normalize(at(X, first), count, pitch, columns, mean_of, factor_of, B_of, at(Y, first), stream);
    });
  } else {
    RunSweep(cut, tile).backwards([&](size_t first, size_t length) {
      kernels.run_normalize(at(X, first), tile.channels, cut.view.inner, length, mean, factor, B, at(Y, first),
                            stream);
    });
  }
  if (stream) kernels.fence();
}

void Sweep::gradient(const Tile& tile, const void* dY, const void* X, const double* mean, const double* factor,
                     const double* shift, const double* slope, void* dX) const {
  if (cut.by_rows) {
    const RowSweep rows(cut, tile);
    RowSweep::Columns means, factors, shifts, slopes;
    const size_t behind = behind_aligned(at(dX, rows.first()));
    const double* mean_of = rows.spread(mean, means, behind);
    const double* factor_of = rows.spread(factor, factors, behind);
    const double* shift_of = rows.spread(shift, shifts, behind);
    const double* slope_of = rows.spread(slope, slopes, behind);
    rows.backwards([&](size_t first, size_t count, size_t pitch, size_t columns) {
      kernels.row_gradient(at(dY, first), at(X, first), count, pitch, columns, mean_of, factor_of, shift_of, slope_of,
                           at(dX, first), stream);
    });
  } else {
    RunSweep(cut, tile).backwards([&](size_t first, size_t length) {
      kernels.run_gradient(at(dY, first), at(X, first), tile.channels, cut.view.inner, length, mean, factor, shift,
                           slope, at(dX, first), stream);
    });
  }
  if (stream) kernels.fence();
}

}  // namespace bnpass::cpu
