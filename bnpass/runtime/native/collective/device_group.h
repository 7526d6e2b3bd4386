// A group whose messages may lie in device memory. It agrees on every header through a HostGroup of the same replicas,
// and then moves the payload itself.
#pragma once

#include "collective/group.h"

namespace bnpass::collective {

class DeviceGroup : public Group {
 public:
  /// Reduces device_data in place, in the order of the stream; may return before the sum is there.
  /// stream: a cudaStream_t. Throws Error as Group::all_reduce does.
  virtual void all_reduce_device(const Call& call, void* device_data, void* stream) = 0;
};

}  // namespace bnpass::collective
