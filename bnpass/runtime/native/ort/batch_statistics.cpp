#include "ort/batch_statistics.h"

#include <algorithm>

#include "cpu/batch_norm.h"

namespace bnpass::ort {
namespace {

/// One message: n, then n·mean, then the squares around 0.
BatchStatistics around_zero(const Membership& membership, const BatchStatistics& local, const Vector& square_sum) {
  const size_t length = local.mean.size();
  Vector message(1 + 2 * length);
  message[0] = local.count;
  for (size_t i = 0; i < length; ++i) {
    const double sum = local.count * local.mean[i];
    message[1 + i] = sum;
    message[1 + length + i] = square_sum[i] + sum * local.mean[i];
  }
  exchange(membership, message);
  BatchStatistics whole{Vector(length, 0.0), Vector(length, 0.0), message[0]};
  for (size_t i = 0; i < length && whole.count > 0; ++i) {
    const double mean = message[1 + i] / whole.count, var = message[1 + length + i] / whole.count - mean * mean;
    whole.mean[i] = mean;
    whole.var[i] = var < 0 ? 0.0 : var;  // a NaN stays one
  }
  return whole;
}

/// Two messages: n and n·mean, then the squares around the mean of all.
BatchStatistics around_mean(const Membership& membership, const BatchStatistics& local, const Vector& square_sum) {
  const size_t length = local.mean.size();
  Vector sums(1 + length);
  sums[0] = local.count;
  for (size_t i = 0; i < length; ++i) sums[1 + i] = local.count * local.mean[i];
  exchange(membership, sums);
  BatchStatistics whole{Vector(length, 0.0), Vector(length, 0.0), sums[0]};
  if (whole.count == 0) return whole;
  Vector squares(length);
  for (size_t i = 0; i < length; ++i) {
    whole.mean[i] = sums[1 + i] / whole.count;
    const double away = local.mean[i] - whole.mean[i];
    squares[i] = local.count == 0 ? 0.0 : square_sum[i] + local.count * away * away;
  }
  exchange(membership, squares);
  for (size_t i = 0; i < length; ++i) whole.var[i] = squares[i] / whole.count;
  return whole;
}

}  // namespace

BatchStatistics batch_statistics(Parallel& parallel, const Geometry& geometry, Element element, const void* X,
                                 const Membership& membership) {
  const size_t length = geometry.statistics();
  BatchStatistics local{Vector(length), Vector(length), static_cast<double>(geometry.count())};
  cpu::moments(parallel, geometry, element, X, local.mean.data(), local.var.data());
  if (membership.shared()) {
    return element == Element::f64 ? around_mean(membership, local, local.var)
                                   : around_zero(membership, local, local.var);
  }
  for (double& square_sum : local.var) square_sum /= std::max(local.count, 1.0);
  return local;
}

void exchange(const Membership& membership, Vector& message) {
  collective::Call call = membership.call;
  call.wire = collective::Wire::f64;
  call.reduction = collective::Reduction::sum;
  call.length = message.size();
  membership.group->all_reduce(call, message.data());
}

}  // namespace bnpass::ort
