// A group of replicas that add up messages. Every replica meets the same calls in the same order, or all of them get
// one and the same error: the header {collective_id, length, type, reduction, failure} is agreed on before any number
// is used, and every wait ends at a deadline.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace bnpass::collective {

/// What travels. max and min of floats travel as ordered integers (see all_reduce.h), so that NaN wins.
enum class Wire : int32_t { f32 = 1, i64 = 7, f64 = 11 };
enum class Reduction : int32_t { sum = 0, max = 1, min = 2 };

struct Call {
  int64_t collective_id = 0;
  Wire wire = Wire::f64;
  Reduction reduction = Reduction::sum;
  size_t length = 0;   ///< Elements.
  std::string node;    ///< "SyncBatchNormalization node 'bn1'", for error texts.
};

class Group {
 public:
  virtual ~Group() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;

  /// Reduces data in place over all replicas; the same bits everywhere.
  /// Throws Error, the same sentence on every replica that is still there, if replicas disagree in the header, one of
  /// them failed, one did not come before the deadline, or the group has failed before: a group that has failed once
  /// fails for good.
  virtual void all_reduce(const Call& call, void* data) = 0;

  /// Takes part in the collective only to tell the others that this replica cannot; then throws Error, as they do.
  /// failure: what this replica found, one sentence.
  [[noreturn]] virtual void fail(const Call& call, const std::string& failure) = 0;
};

/// The groups that one replica knows by name.
class Groups {
 public:
  virtual ~Groups() = default;
  /// Returns the group of a name; throws Error, naming those there are, if there is none or this replica is not in it.
  virtual std::shared_ptr<Group> find(const std::string& name) const = 0;
};

/// One replica alone: every name stands for it.
std::shared_ptr<Groups> local_groups();

/// The groups that RegisterCustomOps, called on this thread, hands to its operators; local_groups() until set.
/// A call with null sets that back.
void use_groups(std::shared_ptr<Groups> groups);
std::shared_ptr<Groups> groups_in_use();

}  // namespace bnpass::collective
