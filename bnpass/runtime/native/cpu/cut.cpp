#include "cpu/cut.h"

#include <algorithm>

namespace bnpass::cpu {
namespace {

constexpr size_t KiB = 1024;
/// Below this a task costs more than it gains.
constexpr size_t bytes_of_task = 64 * KiB;
/// What is still in the second-level cache when it is read a second time.
constexpr size_t bytes_in_cache = 512 * KiB;
/// The same, of a block that goes by runs: all of the second-level cache, since longer stretches gain more than they lose.
constexpr size_t bytes_of_runs = 1024 * KiB;
/// Tasks that are given up for channels that lie one behind the other: the prefetcher begins anew with each stretch.
constexpr size_t channels_together = 4;
/// So much of a row is taken at least, and a multiple of it: one column after the other would make nothing of the
/// prefetcher, and a part of a cache line is read as a whole.
constexpr size_t columns_together = 64;
/// With fewer independent blocks than this, several threads share a block.
constexpr size_t enough_blocks = 16;
/// Runs shorter than this are taken by rows.
constexpr size_t shortest_run = 16;

size_t divided_up(size_t a, size_t b) { return (a + b - 1) / b; }

/// Pulls lengths together that lie one behind the other in a ghost batch.
Geometry simplest(Geometry g) {
  if (g.groups == 1) {
    g.per *= g.samples;
    g.samples = 1;
  }
  if (g.channels == 1) {
    g.inner *= g.per;
    g.per = 1;
  }
  return g;
}

void cut_rows(Cut& cut, size_t bytes, size_t wanted) {
  const Geometry& view = cut.view;
  const size_t row = view.channels * view.inner;
  const size_t least = divided_up(columns_together, view.inner);
  const size_t most = max_columns / view.inner;
  const size_t blocks = divided_up(std::min(wanted, 2 * enough_blocks), view.groups);
  cut.block = std::min({view.channels, most, divided_up(divided_up(view.channels, blocks), least) * least});
  cut.blocks = divided_up(view.channels, cut.block);
  const bool fits = cut.rows() * cut.block * view.inner * bytes <= 2 * bytes_in_cache;
  if (!fits || cut.tiles() < std::min(wanted, enough_blocks)) {
    cut.block = std::min(view.channels, most);
    cut.blocks = divided_up(view.channels, cut.block);
    cut.chunks = std::min(divided_up(wanted, cut.tiles()), cut.rows());
  }
  if (cut.blocks == 1) cut.wide = std::max<size_t>(1, std::min(max_columns / row, view.per / cut.chunks / 8));
}

void cut_runs(Cut& cut, size_t bytes, size_t wanted) {
  const Geometry& view = cut.view;
  const size_t most = std::min(max_run_channels, bytes_of_runs / (view.count() * bytes));
  cut.block = std::clamp<size_t>(most, 1, channels_together * divided_up(view.channels * view.groups, wanted));
  cut.block = std::min(cut.block, view.channels);
  cut.blocks = divided_up(view.channels, cut.block);
  size_t chunks = 1;
  if (cut.tiles() < std::min(wanted, enough_blocks)) {
    chunks = divided_up(wanted, cut.tiles());
    cut.parts = std::min(divided_up(chunks, cut.rows()), divided_up(view.inner, shortest_run));
  }
  cut.length = divided_up(divided_up(view.inner, cut.parts), shortest_run) * shortest_run;
  cut.parts = divided_up(view.inner, cut.length);  // none of them empty
  cut.chunks = std::min(chunks, cut.rows());
}

}  // namespace

Tile Cut::tile(size_t index) const {
  const size_t chunk = chunk_of(index), unit = index % (view.groups * blocks);
  const size_t channel = unit % blocks * block;
  return {unit / blocks, channel, std::min(block, view.channels - channel), chunk * rows() / chunks,
          (chunk + 1) * rows() / chunks};
}

Cut cut(const Geometry& geometry, size_t bytes) {
  Cut result;
  result.view = simplest(geometry);
  const size_t wanted = std::clamp<size_t>(geometry.size() * bytes / bytes_of_task, 1, max_tasks);
  result.by_rows = result.view.inner < shortest_run;
  if (result.by_rows) {
    cut_rows(result, bytes, wanted);
  } else {
    cut_runs(result, bytes, wanted);
  }
  result.tasks = std::min(wanted, result.tiles());
  return result;
}

}  // namespace bnpass::cpu
