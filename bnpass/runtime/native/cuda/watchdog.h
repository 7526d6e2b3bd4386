// Follows the messages of one communicator, and ends the communicator when one is late.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace bnpass::cuda {

class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;

  /// fault: returns what is wrong with the communicator, or "". end: called once, with a sentence, when it has to end.
  Watchdog(int device, std::function<std::string()> fault, std::function<void(const std::string&)> end);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Follows what is on the stream up to here. what: "collective 3 of …"; it must be done within `seconds`.
  void follow(cudaStream_t stream, const std::string& what, double seconds);

 private:
  struct Message {
    cudaEvent_t done;
    Clock::time_point deadline;
    std::string what;
    double seconds;
  };

  void run();
  std::string look();  ///< Forgets what is done; returns a sentence if something is wrong.

  const int device_;
  const std::function<std::string()> fault_;
  const std::function<void(const std::string&)> end_;
  std::mutex mutex_;
  std::condition_variable news_;
  std::deque<Message> messages_;
  std::vector<cudaEvent_t> spare_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace bnpass::cuda
