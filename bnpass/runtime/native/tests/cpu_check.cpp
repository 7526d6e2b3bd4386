// Checks every function of cpu/batch_norm.h: each element, kind of shape and instruction set against plain loops in
// long double; the same bits for any number of threads, for operands that begin anywhere, and in place; a NaN stays in its
// channel; conversions round once. Prints one line; exits with 1 after the first lines about what is wrong.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/geometry.h"
#include "cpu/batch_norm.h"
#include "cpu/cache.h"
#include "cpu/kernels.h"

namespace {

using bnpass::Element;
using bnpass::Geometry;
using bnpass::Parallel;
using bnpass::size_of;
namespace cpu = bnpass::cpu;

using Wide = long double;
using Doubles = std::vector<double>;
using Bytes = std::vector<unsigned char>;

size_t checks = 0, failures = 0;
std::string where;

void expect(bool holds, const char* what, size_t index = 0, double got = 0, double wanted = 0) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) {
    std::printf("%s: %s[%zu]: %.17g, expected %.17g\n", where.c_str(), what, index, got, wanted);
  }
}

/// n threads that take tasks as they come.
class Threads final : public Parallel {
 public:
  explicit Threads(size_t n) : n_(n) {}
  void run(size_t tasks, Task task, void* data) override {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i; (i = next++) < tasks;) task(data, i);
    };
    std::vector<std::thread> others;
    for (size_t i = 1; i < n_; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }

 private:
  size_t n_;
};

// Formats, written from their definition.

struct Format {
  int fraction, least_exponent, most_exponent;
};

Format format_of(Element element) {
  switch (element) {
    case Element::f16:
      return {10, -14, 15};
    case Element::bf16:
      return {7, -126, 127};
    case Element::f32:
      return {23, -126, 127};
    default:
      return {52, -1022, 1023};
  }
}

/// The value of a 16-bit pattern.
double decoded(Element element, uint16_t bits) {
  const Format f = format_of(element);
  const int exponent = (bits & 0x7fff) >> f.fraction, fraction = bits & ((1 << f.fraction) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == f.most_exponent * 2 + 1) {
    return fraction == 0 ? sign * HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, f.least_exponent - f.fraction);
  return sign * std::ldexp(fraction + (1 << f.fraction), exponent - f.most_exponent - f.fraction);
}

/// The distance between neighbours of x in a format.
Wide spacing(Element element, Wide x) {
  const Format f = format_of(element);
  const int exponent = x == 0 || !std::isfinite(x) ? f.least_exponent : std::ilogb(x);
  return std::ldexp(1.0L, std::max(exponent, f.least_exponent) - f.fraction);
}

/// x rounded once, to nearest even.
double nearest(Element element, double x) {
  if (!std::isfinite(x)) return x;
  const Format f = format_of(element);
  const Wide step = spacing(element, x), rounded = std::nearbyint(x / step) * step;
  const bool overflows = std::fabs(rounded) >= std::ldexp(1.0L, f.most_exponent + 1);
  return std::copysign(overflows ? HUGE_VAL : static_cast<double>(rounded), x);
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

/// Elements of some type behind an odd beginning, with guards on both sides.
class Tensor {
 public:
  Tensor(Element element, size_t size, size_t offset = 0)
      : element_(element), size_(size), offset_(guard + offset * size_of(element)) {
    bytes_.assign(offset_ + size * size_of(element) + guard, 0xa5);
  }
  Tensor(Element element, const Doubles& values, size_t offset = 0) : Tensor(element, values.size(), offset) {
    cpu::from_double(element, values.data(), data(), size_);
  }

  void* data() { return bytes_.data() + offset_; }
  const void* data() const { return bytes_.data() + offset_; }
  Bytes content() const {
    return Bytes(bytes_.begin() + static_cast<ptrdiff_t>(offset_), bytes_.end() - static_cast<ptrdiff_t>(guard));
  }
  Doubles values() const {
    Doubles result(size_);
    cpu::to_double(element_, data(), result.data(), size_);
    return result;
  }
  bool guards_hold() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < offset_ || i >= bytes_.size() - guard) && bytes_[i] != 0xa5) return false;
    }
    return true;
  }

 private:
  static constexpr size_t guard = 64;
  Element element_;
  size_t size_, offset_;
  Bytes bytes_;
};

// The same in plain loops.

template <class F>
void each_element(const Geometry& g, const F& body) {
  size_t element = 0;
  for (size_t o = 0; o < g.outer(); ++o) {
    for (size_t c = 0; c < g.channels; ++c) {
      for (size_t i = 0; i < g.inner; ++i) body(element++, g.group_of(o) * g.channels + c, c);
    }
  }
}

struct Case {
  Geometry g;
  Element element;
  Doubles x, dy, scale, B;  // x and dy are elements, exactly
  double epsilon = 1e-3;
};

struct Expected {
  std::vector<Wide> mean, square_sum, sum_dY, sum_dYX, size_dY, size_dYX, Y, dX, Y_size, dX_size;
};

Expected expected(const Case& k, const Doubles& mean, const Doubles& inv_std, double count) {
  const size_t statistics = k.g.statistics(), size = k.g.size();
  const std::vector<Wide> zero(statistics, 0);
  Expected e{zero, zero, zero, zero, zero, zero, {}, {}, {}, {}};
  const auto n = static_cast<Wide>(k.g.count());
  each_element(k.g, [&](size_t i, size_t s, size_t) { e.mean[s] += k.x[i] / n; });
  for (auto* list : {&e.Y, &e.dX, &e.Y_size, &e.dX_size}) list->resize(size);
  each_element(k.g, [&](size_t i, size_t s, size_t c) {
    const Wide exact = k.x[i] - e.mean[s], centred = static_cast<Wide>(k.x[i]) - mean[s];
    e.square_sum[s] += exact * exact;
    e.sum_dY[s] += k.dy[i];
    e.sum_dYX[s] += k.dy[i] * centred;
    e.size_dY[s] += std::fabs(k.dy[i]);
    e.size_dYX[s] += std::fabs(k.dy[i] * centred);
    const Wide factor = static_cast<Wide>(k.scale[c]) * inv_std[s];
    e.Y[i] = factor * centred + k.B[c];
    e.Y_size[i] = std::fabs(factor * centred) + std::fabs(k.B[c]);
  });
  each_element(k.g, [&](size_t i, size_t s, size_t c) {
    const Wide centred = static_cast<Wide>(k.x[i]) - mean[s], factor = static_cast<Wide>(k.scale[c]) * inv_std[s];
    const Wide shift = e.sum_dY[s] / count, slope = inv_std[s] * inv_std[s] * e.sum_dYX[s] / count;
    e.dX[i] = factor * (k.dy[i] - shift - slope * centred);
    e.dX_size[i] = std::fabs(factor) * (std::fabs(k.dy[i]) + e.size_dY[s] / count +
                                        inv_std[s] * inv_std[s] * e.size_dYX[s] / count * std::fabs(centred));
  });
  return e;
}

/// Rounding errors of sums: of n terms in blocks, relative to the sum of their sizes.
constexpr Wide epsilon = 0x1p-52L;

void expect_sums(const char* what, const Doubles& got, const std::vector<Wide>& wanted, const std::vector<Wide>& size,
                 Wide n) {
  for (size_t i = 0; i < got.size(); ++i) {
    const Wide error = std::fabs(got[i] - wanted[i]);
    expect(error <= epsilon * (4 + n / 8) * size[i], what, i, got[i], static_cast<double>(wanted[i]));
  }
}

void expect_elements(const char* what, Element element, const Tensor& got, const std::vector<Wide>& wanted,
                     const std::vector<Wide>& size, Wide more = 0) {
  const Doubles values = got.values();
  expect(got.guards_hold(), "guards");
  for (size_t i = 0; i < values.size(); ++i) {
    const Wide half_step = spacing(element, wanted[i]) * 0.5L, error = std::fabs(values[i] - wanted[i]);
    expect(error <= half_step * 1.0000001L + (16 * epsilon + more) * size[i], what, i, values[i],
           static_cast<double>(wanted[i]));
  }
}

/// Everything that is computed from a case.
struct Results {
  Doubles mean, square_sum, fused_mean, var, inv_std, sum_dY, sum_dYX, fused_sum_dY, fused_sum_dYX;
  Tensor Y, fused_Y, dX, fused_dX, constant_dX;
};

Results computed(Parallel& parallel, const Case& k, const Doubles& factor_scale, double count, size_t offset) {
  const Geometry& g = k.g;
  const size_t statistics = g.statistics(), size = g.size();
  const Doubles zero(statistics, 12345.0);
  const Tensor fresh(k.element, size, offset);
  const Tensor X(k.element, k.x, offset), dY(k.element, k.dy, 2 * offset);
  Results r{zero, zero, zero, zero, zero, zero, zero, zero, zero, fresh, fresh, fresh, fresh, fresh};
  cpu::moments(parallel, g, k.element, X.data(), r.mean.data(), r.square_sum.data());
  Doubles factor(statistics), shift(statistics), slope(statistics), inv_std(statistics);
  for (size_t s = 0; s < statistics; ++s) {
    const double var = g.count() == 0 ? 1 : r.square_sum[s] / static_cast<double>(g.count());
    inv_std[s] = 1 / std::sqrt(var + k.epsilon);
    factor[s] = factor_scale[s % g.channels] * inv_std[s];
  }
  cpu::normalize(parallel, g, k.element, X.data(), r.mean.data(), factor.data(), k.B.data(), r.Y.data());
  if (g.count() > 0) {
    cpu::forward(parallel, g, k.element, X.data(), k.scale.data(), k.B.data(), k.epsilon, r.fused_mean.data(),
                 r.var.data(), r.inv_std.data(), r.fused_Y.data());
  }
  cpu::gradient_sums(parallel, g, k.element, dY.data(), X.data(), r.mean.data(), r.sum_dY.data(), r.sum_dYX.data());
  for (size_t s = 0; s < statistics; ++s) {
    shift[s] = r.sum_dY[s] / count;
    slope[s] = inv_std[s] * inv_std[s] * r.sum_dYX[s] / count;
  }
  cpu::gradient_apply(parallel, g, k.element, dY.data(), X.data(), r.mean.data(), factor.data(), shift.data(),
                      slope.data(), r.dX.data());
  cpu::gradient_apply(parallel, g, k.element, dY.data(), nullptr, nullptr, factor.data(), nullptr, nullptr,
                      r.constant_dX.data());
  cpu::backward(parallel, g, k.element, dY.data(), X.data(), k.scale.data(), r.mean.data(), inv_std.data(), count,
                r.fused_sum_dY.data(), r.fused_sum_dYX.data(), r.fused_dX.data());
  return r;
}

bool same_bits(const Doubles& a, const Doubles& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

void expect_same_bits(const Results& a, const Results& b, const char* what) {
  const auto pairs = {std::pair{&a.mean, &b.mean},
                      {&a.square_sum, &b.square_sum},
                      {&a.fused_mean, &b.fused_mean},
                      {&a.var, &b.var},
                      {&a.inv_std, &b.inv_std},
                      {&a.sum_dY, &b.sum_dY},
                      {&a.sum_dYX, &b.sum_dYX},
                      {&a.fused_sum_dY, &b.fused_sum_dY},
                      {&a.fused_sum_dYX, &b.fused_sum_dYX}};
  for (const auto& [one, other] : pairs) expect(same_bits(*one, *other), what);
  for (const auto tensor : {&Results::Y, &Results::fused_Y, &Results::dX, &Results::fused_dX, &Results::constant_dX}) {
    expect((a.*tensor).content() == (b.*tensor).content(), what);
    expect((b.*tensor).guards_hold(), "guards");
  }
}

Case random_case(const Geometry& g, Element element, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Case k{g, element, Doubles(g.size()), Doubles(g.size()), Doubles(g.channels), Doubles(g.channels)};
  Doubles offset(g.statistics());
  for (double& value : offset) value = 20 * normal(random);
  for (size_t c = 0; c < g.channels; ++c) k.scale[c] = normal(random), k.B[c] = normal(random);
  each_element(g, [&](size_t i, size_t s, size_t) {
    k.x[i] = offset[s] + normal(random);
    k.dy[i] = normal(random);
  });
  k.x = Tensor(element, k.x).values();
  k.dy = Tensor(element, k.dy).values();
  return k;
}

void check_numbers(const Case& k, const Results& r, double count) {
  const auto n = static_cast<Wide>(k.g.count());
  const size_t statistics = k.g.statistics();
  Doubles inv_std(statistics);
  for (size_t s = 0; s < statistics; ++s) {
    inv_std[s] = 1 / std::sqrt((k.g.count() == 0 ? 1 : r.square_sum[s] / static_cast<double>(n)) + k.epsilon);
  }
  const Expected e = expected(k, r.mean, inv_std, count);
  std::vector<Wide> magnitude(statistics, 0);
  each_element(k.g, [&](size_t i, size_t s, size_t) {
    magnitude[s] = std::max(magnitude[s], std::fabs(Wide{k.x[i]}));
  });
  expect_sums("mean", r.mean, e.mean, magnitude, 16);
  std::vector<Wide> squares = e.square_sum;
  for (size_t s = 0; s < statistics; ++s) squares[s] += n * std::pow(epsilon * magnitude[s], 2);
  expect_sums("square_sum", r.square_sum, e.square_sum, squares, 8 * n + 64);
  expect_sums("sum_dY", r.sum_dY, e.sum_dY, e.size_dY, n);
  expect_sums("sum_dYX", r.sum_dYX, e.sum_dYX, e.size_dYX, n);
  expect_sums("fused sum_dY", r.fused_sum_dY, e.sum_dY, e.size_dY, n);
  expect_sums("fused sum_dYX", r.fused_sum_dYX, e.sum_dYX, e.size_dYX, n);
  expect_elements("Y", k.element, r.Y, e.Y, e.Y_size);
  expect_elements("dX", k.element, r.dX, e.dX, e.dX_size, epsilon * n);
  expect_elements("fused dX", k.element, r.fused_dX, e.dX, e.dX_size, epsilon * n);
  std::vector<Wide> constant(k.g.size()), size(k.g.size());
  each_element(k.g, [&](size_t i, size_t s, size_t c) {
    constant[i] = static_cast<Wide>(k.scale[c]) * inv_std[s] * k.dy[i];
    size[i] = std::fabs(constant[i]);
  });
  expect_elements("dX of constants", k.element, r.constant_dX, constant, size);
  if (k.g.count() == 0) return;
  expect_sums("fused mean", r.fused_mean, e.mean, magnitude, 16);
  for (size_t s = 0; s < statistics; ++s) {
    const Wide var = e.square_sum[s] / n;
    expect(std::fabs(r.var[s] - var) <= epsilon * (12 + n) * (var + std::pow(epsilon * magnitude[s], 2)), "var", s,
           r.var[s], static_cast<double>(var));
    const double wanted = 1 / std::sqrt(r.var[s] + k.epsilon);
    expect(std::fabs(r.inv_std[s] - wanted) <= 4 * epsilon * wanted, "inv_std", s, r.inv_std[s], wanted);
  }
  const Expected fused = expected(k, r.fused_mean, r.inv_std, count);
  expect_elements("fused Y", k.element, r.fused_Y, fused.Y, fused.Y_size);
}

/// X, dY and dX may be one tensor.
void check_in_place(const Case& k) {
  bnpass::Serial serial;
  Threads threads(2);
  const Geometry& g = k.g;
  const Doubles zero(g.statistics()), mean(g.statistics(), 0.25), factor(g.statistics(), 1.5);
  const Tensor X(k.element, k.x), dY(k.element, k.dy);
  Tensor Y(k.element, g.size()), own = X;
  Doubles a = zero, b = zero, c = zero;
  cpu::forward(serial, g, k.element, X.data(), k.scale.data(), k.B.data(), 1e-3, a.data(), b.data(), c.data(),
               Y.data());
  cpu::forward(threads, g, k.element, own.data(), k.scale.data(), k.B.data(), 1e-3, a.data(), b.data(), c.data(),
               own.data());
  expect(own.content() == Y.content(), "forward in place");
  own = X;
  cpu::normalize(serial, g, k.element, X.data(), mean.data(), factor.data(), k.B.data(), Y.data());
  cpu::normalize(threads, g, k.element, own.data(), mean.data(), factor.data(), k.B.data(), own.data());
  expect(own.content() == Y.content(), "normalize in place");
  const auto count = static_cast<double>(g.count());
  cpu::backward(serial, g, k.element, dY.data(), X.data(), k.scale.data(), mean.data(), factor.data(), count, a.data(),
                b.data(), Y.data());
  own = X;
  cpu::backward(threads, g, k.element, dY.data(), own.data(), k.scale.data(), mean.data(), factor.data(), count,
                a.data(), b.data(), own.data());
  expect(own.content() == Y.content(), "backward in place of X");
  own = dY;
  cpu::backward(threads, g, k.element, own.data(), X.data(), k.scale.data(), mean.data(), factor.data(), count,
                a.data(), b.data(), own.data());
  expect(own.content() == Y.content(), "backward in place of dY");
}

/// What is not finite shows in its own statistic, and the others keep their bits.
void check_not_finite(const Case& k) {
  bnpass::Serial serial;
  const Geometry& g = k.g;
  const size_t statistics = g.statistics();
  size_t bad = 0, last = 0;
  each_element(g, [&](size_t i, size_t s, size_t) { bad = s == statistics - 1 ? i : bad, last = s == 0 ? i : last; });
  const Results plain = computed(serial, k, k.scale, 7, 0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double value : {HUGE_VAL, -HUGE_VAL, nan}) {
    for (const size_t at : {bad, last, size_t{0}}) {
      Case spoilt = k;
      spoilt.x[at] = value;
      const Results r = computed(serial, spoilt, k.scale, 7, 0);
      const Doubles Y = r.fused_Y.values(), dX = r.fused_dX.values();
      each_element(g, [&](size_t i, size_t s, size_t) {
        size_t home = 0;
        each_element(g, [&](size_t j, size_t t, size_t) { home = j == at ? t : home; });
        if (s == home) {
          expect(same(r.mean[s], value), "mean of what is not finite", s, r.mean[s], value);
          expect(same(r.fused_mean[s], value), "fused mean of what is not finite", s, r.fused_mean[s], value);
          expect(std::isnan(r.square_sum[s]) && std::isnan(r.var[s]), "square_sum of what is not finite", s, r.var[s]);
          expect(std::isnan(Y[i]) && std::isnan(dX[i]), "Y of what is not finite", i, Y[i], nan);
        } else {
          expect(r.mean[s] == plain.mean[s] && r.square_sum[s] == plain.square_sum[s], "mean beside NaN", s);
          expect(Y[i] == plain.fused_Y.values()[i] && dX[i] == plain.fused_dX.values()[i], "Y beside NaN", i);
        }
      });
    }
  }
}

/// Streaming writes what storing writes, wherever it begins and ends.
void check_streams(Element element) {
  const cpu::Kernels& kernels = cpu::instruction_set().of(element);
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  Doubles values(400), columns(400);
  for (double& value : values) value = normal(random);
  for (double& value : columns) value = normal(random);
  const double *m = columns.data(), *f = m + 100, *b = m + 200, *d = m + 250;
  for (size_t n = 0; n < 70; ++n) {
    for (size_t offset = 0; offset < 33; offset += n % 7 + 1) {
      const Tensor x(element, values, offset % 5), dy(element, values, offset % 3);
      const Tensor fresh(element, size_t{3} * 90, offset);
      const auto both = [&](const auto& write) {
        Tensor stored = fresh, streamed = fresh;
        write(stored.data(), false);
        write(streamed.data(), true);
        kernels.fence();
        expect(stored.content() == streamed.content() && streamed.guards_hold(), "streamed", n);
      };
      both([&](void* y, bool stream) { kernels.run_normalize(x.data(), 3, 90, n, m, f, b, y, stream); });
      both([&](void* y, bool stream) { kernels.row_normalize(x.data(), 3, 90, n, m, f, b, y, stream); });
      both([&](void* y, bool s) { kernels.run_gradient(dy.data(), x.data(), 3, 90, n, m, f, b, d, y, s); });
      both([&](void* y, bool s) { kernels.row_gradient(dy.data(), x.data(), 3, 90, n, m, f, b, d, y, s); });
      if (n < cpu::lanes) continue;  // channels one behind the other
      both([&](void* y, bool stream) { kernels.run_normalize(x.data(), 3, n, n, m, f, b, y, stream); });
      both([&](void* y, bool s) { kernels.run_gradient(dy.data(), x.data(), 3, n, n, m, f, b, d, y, s); });
    }
  }
}

/// Every 16-bit pattern comes through; what lies between two of them goes to the nearer one.
void check_conversions(Element element) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<uint16_t>(bits);
    double value = 0;
    uint16_t back = 0;
    cpu::to_double(element, &pattern, &value, 1);
    expect(same(value, decoded(element, pattern)), "to_double", bits, value, decoded(element, pattern));
    cpu::from_double(element, &value, &back, 1);
    expect(back == pattern || std::isnan(value), "from_double of its own", bits, back, pattern);
  }
  Doubles inputs = {0.0, -0.0, 5e-324, -5e-324, 1e-310, 1e-46, -1e-46, 1e-30, 65504, 65519.99, 65520, 65520.01, -65520,
                    1e6, 1e38, 3.39e38, 3.3961775292304957e38, 3.4e38, 3.5e38, 1e39, 1e300, -1.7e308, HUGE_VAL,
                    -HUGE_VAL, std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::quiet_NaN()};
  for (uint32_t bits = 0; bits < 0x7fff; ++bits) {
    const double low = decoded(element, static_cast<uint16_t>(bits));
    const double high = decoded(element, static_cast<uint16_t>(bits + 1));
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const double middle = (low + high) / 2, small = std::ldexp(middle, -40);
    const double below = std::nextafter(middle, low), above = std::nextafter(middle, high);
    for (const double x : {middle, below, above, middle + small, middle - small}) {
      inputs.push_back(x);
      inputs.push_back(-x);
    }
  }
  std::vector<uint16_t> outputs(inputs.size());
  cpu::from_double(element, inputs.data(), outputs.data(), inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const double got = decoded(element, outputs[i]), wanted = nearest(element, inputs[i]);
    expect(same(got, wanted), "from_double", i, got, wanted);
  }
}

void check_shape(const Geometry& g, Element element, unsigned seed) {
  bnpass::Serial serial;
  const Case k = random_case(g, element, seed);
  const double count = static_cast<double>(g.count()) + 5;  // of a group with other replicas
  const Results r = computed(serial, k, k.scale, count, 0);
  check_numbers(k, r, count);
  for (const size_t n : {2, 3, 7}) {
    Threads threads(n);
    expect_same_bits(r, computed(threads, k, k.scale, count, 0), "bits with other threads");
  }
  expect_same_bits(r, computed(serial, k, k.scale, count, 1), "bits of another beginning");
  if (g.count() > 0) check_in_place(k);
  if (g.size() > 0 && g.size() < 300) check_not_finite(k);
}

const std::vector<Geometry>& shapes() {  // samples, groups, per, channels, inner
  static const std::vector<Geometry> list = {
      {1, 1, 1, 1, 1},     {2, 1, 1, 1, 1},     {4, 1, 1, 3, 1},      {4, 1, 1, 3, 5},       {5, 1, 1, 3, 49},
      {3, 1, 7, 65, 1},    {2, 1, 3, 5, 2},     {3000, 1, 1, 7, 2},   {500, 1, 3, 11, 3},    {2, 1, 1, 1000, 3},
      {2, 1, 1, 600, 1},   {300, 1, 1, 1001, 1},{4, 1, 1, 130, 49},   {3, 1, 1, 2, 3137},    {1, 1, 1, 1, 100003},
      {1, 1, 1, 2, 70001}, {1, 1, 1, 40, 3137}, {2, 1, 2, 17, 1003},  {40000, 1, 1, 1, 1},   {30000, 1, 1, 3, 1},
      {17, 1, 401, 24, 1}, {2, 3, 1, 5, 7},     {4, 2, 3, 3, 1},      {5, 3, 40, 4, 1},      {2, 4, 1, 33, 17},
      {3, 50, 2, 9, 1},    {2, 2, 50, 1, 33},   {2, 3, 1, 1, 40001},  {16, 2, 2500, 3, 1},   {64, 1, 1, 64, 16},
      {1, 1, 1, 300, 15},  {1, 1, 1, 3000, 2},  {0, 1, 1, 3, 4},      {2, 1, 1, 0, 4},       {2, 1, 1, 3, 0},
      {2, 0, 1, 3, 4},     {0, 1, 0, 3, 1},     {2, 2, 0, 3, 1},      {1, 1, 1, 1, 0}};
  return list;
}

/// Larger than a cache of 1 MiB, so written past it: by rows, by runs of one channel, and of many.
const std::vector<Geometry>& large_shapes() {
  static const std::vector<Geometry> list = {{1001, 1, 20, 65, 1}, {3, 1, 1, 2, 250003}, {13, 1, 1, 67, 1003}};
  return list;
}

void check_element(const char* set, Element element) {
  const auto at = [&](const Geometry& g) {
    where = std::string(set) + " " + bnpass::name_of(element) + " [" + std::to_string(g.samples) + " " +
            std::to_string(g.groups) + " " + std::to_string(g.per) + " " + std::to_string(g.channels) + " " +
            std::to_string(g.inner) + "]";
  };
  where = std::string(set) + " " + bnpass::name_of(element);
  if (size_of(element) == 2) check_conversions(element);
  check_streams(element);
  unsigned seed = 0;
  for (const Geometry& g : shapes()) {
    at(g);
    check_shape(g, element, ++seed);
  }
  if (element != Element::f32 || std::string(set) == "avx2") return;
  const size_t cache = cpu::last_level_cache();
  cpu::assume_last_level_cache(size_t{1} << 20);
  for (const Geometry& g : large_shapes()) {
    at(g);
    bnpass::Serial serial;
    Threads threads(3);
    const Case k = random_case(g, element, ++seed);
    const Results r = computed(serial, k, k.scale, 1e6, 0);
    check_numbers(k, r, 1e6);
    expect_same_bits(r, computed(threads, k, k.scale, 1e6, 3), "bits with other threads and another beginning");
    cpu::assume_last_level_cache(SIZE_MAX);
    expect_same_bits(r, computed(serial, k, k.scale, 1e6, 0), "bits by way of the caches");
    cpu::assume_last_level_cache(size_t{1} << 20);
  }
  cpu::assume_last_level_cache(cache);
}

}  // namespace

int main() {
  std::string sets;
  for (const char* set : {"baseline", "avx2", "avx512", "avx512-pairs"}) {
    if (!cpu::use_instructions(set)) continue;
    sets += std::string(sets.empty() ? "" : ", ") + cpu::instructions();
    for (const Element element : {Element::f16, Element::bf16, Element::f32, Element::f64}) check_element(set, element);
  }
  std::printf("cpu_check: %zu checks with %s, %zu failed\n", checks, sets.c_str(), failures);
  return failures == 0 ? 0 : 1;
}
