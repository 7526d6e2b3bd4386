#include "cuda/watchdog.h"

#include <utility>

#include "cuda/check.h"

namespace bnpass::cuda {
namespace {

constexpr auto kPause = std::chrono::milliseconds(10);

}  // namespace

Watchdog::Watchdog(int device, std::function<std::string()> fault, std::function<void(const std::string&)> end)
    : device_(device), fault_(std::move(fault)), end_(std::move(end)), thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  news_.notify_all();
  thread_.join();
  for (const Message& message : messages_) cudaEventDestroy(message.done);
  for (cudaEvent_t event : spare_) cudaEventDestroy(event);
}

void Watchdog::follow(cudaStream_t stream, const std::string& what, double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cudaEvent_t event = nullptr;
  if (spare_.empty()) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event cannot be made");
  } else {
    event = spare_.back();
    spare_.pop_back();
  }
  check(cudaEventRecord(event, stream), "an event cannot be recorded");
  const auto time = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  messages_.push_back({event, Clock::now() + time, what, seconds});
  news_.notify_all();
}

void Watchdog::run() {
  cudaSetDevice(device_);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    news_.wait(lock, [this] { return stop_ || !messages_.empty(); });
    if (stop_) return;
    const std::string sentence = look();
    if (!sentence.empty()) {
      lock.unlock();
      end_(sentence);
      return;
    }
    if (!messages_.empty()) news_.wait_for(lock, kPause, [this] { return stop_; });
  }
}

std::string Watchdog::look() {
  while (!messages_.empty()) {
    const Message& first = messages_.front();
    const cudaError_t state = cudaEventQuery(first.done);
    if (state == cudaSuccess) {
      spare_.push_back(first.done);
      messages_.pop_front();
      continue;
    }
    if (state != cudaErrorNotReady) return first.what + ": CUDA: " + cudaGetErrorString(state);
    const std::string fault = fault_();
    if (!fault.empty()) return first.what + ": " + fault;
    if (Clock::now() < first.deadline) return "";
    return first.what + ": NCCL did not bring the message of all replicas within " + std::to_string(first.seconds) +
           " s";
  }
  return "";
}

}  // namespace bnpass::cuda
