// Memory passes, per element: moments 1 read (2 for double), normalize 1 read and 1 write; forward is both, and where
// a block of channels fits in the cache its second read comes from there. gradient_sums 2 reads, gradient_apply 2 reads
// and 1 write; backward likewise.
//
// Statistics: sums of x − k and (x − k)² in double, with k the first element of the channel and ghost batch. k is one
// of the elements, so that (mean − k)² <= square_sum, which bounds the loss of digits in
//
//   mean = k + Σ(x − k)/count        square_sum = Σ(x − k)² − (Σ(x − k))²/count
//
// to count·2⁻⁵³ of it. Elements that are double themselves get a second pass with k = mean.
#include "cpu/batch_norm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/cache.h"
#include "cpu/cut.h"
#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace bnpass::cpu {
namespace {

/// Outputs are written past the caches if the tensors of a sweep do not fit into the last one together, and if the
/// stretches are long, for a cache line must be written as a whole. Measured with a cache of 32 MB: of 39 MB streaming is
/// 20 % faster, of 26 MB, or with stretches of 784 bytes, as much slower.
constexpr size_t streamed_stretch = 4096;

/// tensors: of the sweep, read and written, of so many bytes per element.
bool is_streamed(const Cut& cut, size_t bytes, size_t tensors) {
  const size_t stretch = cut.parts == 1 ? cut.block * cut.view.inner : cut.length;
  return cut.view.size() * bytes * tensors > last_level_cache() && (cut.by_rows || stretch * bytes >= streamed_stretch);
}

/// Memory of this thread for partial sums, kept from call to call.
double* partial_sums(size_t length) {
  static thread_local std::vector<double> memory;
  if (memory.size() < length) memory.resize(length);
  return memory.data();
}

/// The tasks of a sweep by the threads that did them. A sweep that follows finds in the caches of a thread what that
/// thread has read, the last of it above all.
class Trail {
 public:
  void clear() { left_ = 0; }

  void add(size_t task) {
    const std::lock_guard<std::mutex> guard(mutex_);
    steps_[left_++] = {std::this_thread::get_id(), task};
  }

  /// Takes the last task of this thread out; if there is none, one of another thread.
  size_t take() {
    const std::lock_guard<std::mutex> guard(mutex_);
    size_t i = left_ - 1;
    while (i > 0 && steps_[i].thread != std::this_thread::get_id()) --i;
    const size_t task = steps_[i].task;
    std::copy(steps_.begin() + i + 1, steps_.begin() + left_--, steps_.begin() + i);
    return task;
  }

 private:
  struct Step {
    std::thread::id thread;
    size_t task;
  };
  std::mutex mutex_;
  std::array<Step, max_tasks> steps_;
  size_t left_ = 0;
};

/// A tensor in its cut.
struct Job {
  Job(Parallel& p, const Geometry& geometry, Element type, size_t tensors)
      : parallel(p),
        element(type),
        cut(cpu::cut(geometry, size_of(type) * tensors)),
        sweep{cut, instruction_set().of(type), size_of(type), is_streamed(cut, size_of(type), tensors + 1)},
        count(static_cast<double>(geometry.count())) {}

  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// The first statistic of a tile.
  size_t first(const Tile& tile) const { return tile.group * cut.view.channels + tile.channel; }

  template <class F>
  void each_tile(const F& body) {
    auto task = [&](size_t number) { cut.each_tile(number, [&](size_t index) { body(index, cut.tile(index)); }); };
    parallel.each(cut.tasks, task);
  }

  /// The same from the last to the first: what the sweep before has read last is still in the cache.
  template <class F>
  void each_tile_backwards(const F& body) {
    auto task = [&](size_t number) {
      cut.each_tile(number, [&](size_t index) { body(cut.tile(cut.tiles() - 1 - index)); });
    };
    parallel.each(cut.tasks, task);
  }

  /// The same after each_sum, by the threads that had the tiles.
  template <class F>
  void each_tile_again(const F& body) {
    auto task = [&](size_t) { cut.each_tile(trail.take(), [&](size_t index) { body(cut.tile(index)); }); };
    parallel.each(cut.tasks, task);
  }

  /// Calls add(tile, sum, other) for all tiles, and writes the sums over all chunks, [groups, channels].
  template <class Add>
  void each_sum(double* sum, double* other, const Add& add) {
    const size_t statistics = cut.view.statistics();
    double* sums = partial_sums(2 * cut.chunks * statistics);
    trail.clear();
    auto task = [&](size_t number) {
      cut.each_tile(number, [&](size_t index) {
        const Tile tile = cut.tile(index);
        double* to = sums + 2 * cut.chunk_of(index) * statistics + first(tile);
        add(tile, to, to + statistics);
      });
      trail.add(number);
    };
    parallel.each(cut.tasks, task);
    std::copy_n(sums, statistics, sum);
    std::copy_n(sums + statistics, statistics, other);
    for (size_t chunk = 1; chunk < cut.chunks; ++chunk) {
      sums += 2 * statistics;
      for (size_t i = 0; i < statistics; ++i) sum[i] += sums[i];
      for (size_t i = 0; i < statistics; ++i) other[i] += sums[statistics + i];
    }
  }

  Parallel& parallel;
  const Element element;
  const Cut cut;
  const Sweep sweep;
  const double count;
  Trail trail;
};

/// A vector over the channels of a tile.
struct Channels {
  alignas(64) double values[max_columns];
};

/// The first elements of channels, or 0 where one is not finite.
void first_elements(const Job& job, const Tile& tile, const void* X, double* shift) {
  const size_t inner = job.cut.view.inner, start = job.cut.start(tile.group, 0) + tile.channel * inner;
  const size_t together = inner == 1 ? tile.channels : 1;
  for (size_t c = 0; c < tile.channels; c += together) {
    job.sweep.kernels.to_double(job.sweep.at(X, start + c * inner), shift + c, together);
  }
  for (size_t c = 0; c < tile.channels; ++c) {
    if (!std::isfinite(shift[c])) shift[c] = 0;
  }
}

/// Turns shifted sums into mean (in place of sum) and square_sum (in place of square).
void finish_moments(size_t n, double count, const double* shift, double* sum, double* square) {
  for (size_t i = 0; i < n; ++i) {
    const double over = square[i] - sum[i] * sum[i] / count;
    square[i] = over < 0 ? 0 : over;
    sum[i] = shift[i] + sum[i] / count;
  }
}

/// The same, for sums around the mean; a mean that is not finite stays as it is.
void finish_centred(size_t n, double count, const double* mean, double* sum, double* square) {
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(mean[i])) sum[i] = 0;
  }
  finish_moments(n, count, mean, sum, square);
}

/// The moments of a tile that has all rows.
void tile_moments(const Job& job, const Tile& tile, const void* X, double* mean, double* square_sum) {
  Channels shift;
  first_elements(job, tile, X, shift.values);
  job.sweep.sums(tile, X, shift.values, mean, square_sum);
  finish_moments(tile.channels, job.count, shift.values, mean, square_sum);
  if (job.element != Element::f64) return;
  std::copy_n(mean, tile.channels, shift.values);
  job.sweep.sums(tile, X, shift.values, mean, square_sum);
  finish_centred(tile.channels, job.count, shift.values, mean, square_sum);
}

/// The moments from the sums of chunks.
void chunked_moments(Job& job, const void* X, double* mean, double* square_sum) {
  const size_t statistics = job.cut.view.statistics();
  std::vector<double> shift(statistics);
  for (size_t group = 0; group < job.cut.view.groups; ++group) {
    first_elements(job, {group, 0, job.cut.view.channels, 0, 0}, X, shift.data() + group * job.cut.view.channels);
  }
  const auto add = [&](const Tile& tile, double* sum, double* square) {
    job.sweep.sums(tile, X, shift.data() + job.first(tile), sum, square);
  };
  job.each_sum(mean, square_sum, add);
  finish_moments(statistics, job.count, shift.data(), mean, square_sum);
  if (job.element != Element::f64) return;
  std::copy_n(mean, statistics, shift.data());
  job.each_sum(mean, square_sum, add);
  finish_centred(statistics, job.count, shift.data(), mean, square_sum);
}

/// Writes var in place of square_sum, inv_std and factor.
void finish_forward(size_t n, double count, double epsilon, const double* scale, double* var, double* inv_std,
                    double* factor) {
  for (size_t i = 0; i < n; ++i) {
    var[i] /= count;
    inv_std[i] = 1 / std::sqrt(var[i] + epsilon);
    factor[i] = scale[i] * inv_std[i];
  }
}

/// Writes factor, shift and slope of dX.
void finish_backward(size_t n, double count, const double* scale, const double* inv_std, const double* sum_dY,
                     const double* sum_dYX, double* factor, double* shift, double* slope) {
  for (size_t i = 0; i < n; ++i) {
    factor[i] = scale[i] * inv_std[i];
    shift[i] = sum_dY[i] / count;
    slope[i] = inv_std[i] * inv_std[i] * sum_dYX[i] / count;
  }
}

}  // namespace

void moments(Parallel& parallel, const Geometry& geometry, Element element, const void* X, double* mean,
             double* square_sum) {
  if (geometry.size() == 0) {
    std::fill_n(mean, geometry.statistics(), 0.0);
    std::fill_n(square_sum, geometry.statistics(), 0.0);
    return;
  }
  Job job(parallel, geometry, element, 1);
  if (job.cut.chunks > 1) return chunked_moments(job, X, mean, square_sum);
  job.each_tile([&](size_t, const Tile& tile) {
    tile_moments(job, tile, X, mean + job.first(tile), square_sum + job.first(tile));
  });
}

void normalize(Parallel& parallel, const Geometry& geometry, Element element, const void* X, const double* mean,
               const double* factor, const double* B, void* Y) {
  if (geometry.size() == 0) return;
  Job job(parallel, geometry, element, 1);
  job.each_tile_backwards([&](const Tile& tile) {
    const size_t first = job.first(tile);
    job.sweep.normalize(tile, X, mean + first, factor + first, B + tile.channel, Y);
  });
}

void forward(Parallel& parallel, const Geometry& geometry, Element element, const void* X, const double* scale,
             const double* B, double epsilon, double* mean, double* var, double* inv_std, void* Y) {
  if (geometry.size() == 0) return;
  Job job(parallel, geometry, element, 1);
  if (job.cut.chunks > 1) {
    const size_t channels = job.cut.view.channels;
    std::vector<double> factor(job.cut.view.statistics());
    chunked_moments(job, X, mean, var);
    for (size_t i = 0; i < factor.size(); i += channels) {
      finish_forward(channels, job.count, epsilon, scale, var + i, inv_std + i, factor.data() + i);
    }
    job.each_tile_again([&](const Tile& tile) {
      const size_t first = job.first(tile);
      job.sweep.normalize(tile, X, mean + first, factor.data() + first, B + tile.channel, Y);
    });
    return;
  }
  job.each_tile([&](size_t, const Tile& tile) {
    const size_t first = job.first(tile);
    Channels factor;
    tile_moments(job, tile, X, mean + first, var + first);
    finish_forward(tile.channels, job.count, epsilon, scale + tile.channel, var + first, inv_std + first,
                   factor.values);
    job.sweep.normalize(tile, X, mean + first, factor.values, B + tile.channel, Y);
  });
}

void gradient_sums(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
                   const double* mean, double* sum_dY, double* sum_dYX) {
  if (geometry.size() == 0) {
    std::fill_n(sum_dY, geometry.statistics(), 0.0);
    std::fill_n(sum_dYX, geometry.statistics(), 0.0);
    return;
  }
  Job job(parallel, geometry, element, 2);
  const auto add = [&](const Tile& tile, double* a, double* b) {
    job.sweep.gradient_sums(tile, dY, X, mean + job.first(tile), a, b);
  };
  if (job.cut.chunks > 1) return job.each_sum(sum_dY, sum_dYX, add);
  job.each_tile([&](size_t, const Tile& tile) { add(tile, sum_dY + job.first(tile), sum_dYX + job.first(tile)); });
}

void gradient_apply(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
                    const double* mean, const double* factor, const double* shift, const double* slope, void* dX) {
  if (geometry.size() == 0) return;
  if (shift == nullptr) {
    // factor·(dY − 0) + (−0): adding −0 leaves the sign of a zero alone.
    const std::vector<double> zero(geometry.statistics(), 0.0), minus_zero(geometry.channels, -0.0);
    return normalize(parallel, geometry, element, dY, zero.data(), factor, minus_zero.data(), dX);
  }
  Job job(parallel, geometry, element, 2);
  job.each_tile_backwards([&](const Tile& tile) {
    const size_t first = job.first(tile);
    job.sweep.gradient(tile, dY, X, mean + first, factor + first, shift + first, slope + first, dX);
  });
}

void backward(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
              const double* scale, const double* mean, const double* inv_std, double count, double* sum_dY,
              double* sum_dYX, void* dX) {
  if (geometry.size() == 0) return gradient_sums(parallel, geometry, element, dY, X, mean, sum_dY, sum_dYX);
  Job job(parallel, geometry, element, 2);
  const auto add = [&](const Tile& tile, double* a, double* b) {
    job.sweep.gradient_sums(tile, dY, X, mean + job.first(tile), a, b);
  };
  if (job.cut.chunks > 1) {
    job.each_sum(sum_dY, sum_dYX, add);
    const size_t statistics = geometry.statistics();
    std::vector<double> vectors(3 * statistics);
    double *factor = vectors.data(), *shift = factor + statistics, *slope = shift + statistics;
    for (size_t i = 0; i < statistics; i += geometry.channels) {
      finish_backward(geometry.channels, count, scale, inv_std + i, sum_dY + i, sum_dYX + i, factor + i, shift + i,
                      slope + i);
    }
    return job.each_tile_again([&](const Tile& tile) {
      const size_t first = job.first(tile);
      job.sweep.gradient(tile, dY, X, mean + first, factor + first, shift + first, slope + first, dX);
    });
  }
  job.each_tile([&](size_t, const Tile& tile) {
    const size_t first = job.first(tile);
    Channels factor, shift, slope;
    add(tile, sum_dY + first, sum_dYX + first);
    finish_backward(tile.channels, count, scale + tile.channel, inv_std + first, sum_dY + first, sum_dYX + first,
                    factor.values, shift.values, slope.values);
    job.sweep.gradient(tile, dY, X, mean + first, factor.values, shift.values, slope.values, dX);
  });
}

void to_double(Element element, const void* from, double* to, size_t count) {
  instruction_set().of(element).to_double(from, to, count);
}

void from_double(Element element, const double* from, void* to, size_t count) {
  instruction_set().of(element).from_double(from, to, count);
}

}  // namespace bnpass::cpu
