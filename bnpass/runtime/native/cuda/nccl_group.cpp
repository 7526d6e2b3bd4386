#include "cuda/nccl_group.h"

#include <cstring>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "collective/header.h"
#include "cuda/channels.h"
#include "cuda/check.h"
#include "cuda/watchdog.h"
#include "cuda/workspace.h"

namespace bnpass::cuda {
namespace {

using collective::Call;
using collective::HostGroup;

/// A communicator, and a flag in host memory that the device sees: it has been aborted.
class Communicator {
 public:
  Communicator(const NcclLibrary& library, NcclCommunicator communicator, int device, std::shared_ptr<HostGroup> host)
      : library_(library), communicator_(communicator), host_(std::move(host)) {
    void* flag = nullptr;
    check(cudaHostAlloc(&flag, sizeof(int), cudaHostAllocMapped), "no host memory for a flag");
    broken_ = static_cast<int*>(flag);
    *broken_ = 0;
    check(cudaHostGetDevicePointer(&flag, broken_, 0), "the device does not see host memory");
    broken_on_device_ = static_cast<const int*>(flag);
    watchdog_ = std::make_unique<Watchdog>(
        device, [this] { return fault(); }, [this](const std::string& sentence) { end(sentence); });
  }

  ~Communicator() {
    watchdog_.reset();
    if (*broken_ == 0) library_.call().CommAbort(communicator_);  // does not wait for the other replicas
    cudaFreeHost(broken_);
  }

  void all_reduce(const Call& call, void* data, cudaStream_t stream) {
    const int type = nccl_type(call.wire), reduction = nccl_reduction(call.reduction);
    library_.check(library_.call().AllReduce(data, data, call.length, type, reduction, communicator_, stream),
                   "the message cannot be sent");
    const bool integer = call.wire == collective::Wire::i64;
    poison_if(stream, broken_on_device_, integer, collective::size_of(call.wire), data, call.length);
    if (!is_capturing(stream)) watchdog_->follow(stream, collective::name_of(call), host_->deadline().count());
  }

 private:
  std::string fault() const {
    int error = kNcclSuccess;
    const int result = library_.call().CommGetAsyncError(communicator_, &error);
    const int worse = result != kNcclSuccess ? result : error;
    if (worse == kNcclSuccess || worse == kNcclInProgress) return "";
    return std::string("NCCL: ") + library_.call().GetErrorString(worse);
  }

  void end(const std::string& sentence) {
    *static_cast<volatile int*>(broken_) = 1;  // before the aborted kernel lets the stream go on
    host_->break_off(sentence);
    library_.call().CommAbort(communicator_);
  }

  const NcclLibrary& library_;
  const NcclCommunicator communicator_;
  const std::shared_ptr<HostGroup> host_;
  int* broken_ = nullptr;
  const int* broken_on_device_ = nullptr;
  std::unique_ptr<Watchdog> watchdog_;
};

class NcclGroup final : public collective::DeviceGroup {
 public:
  NcclGroup(std::shared_ptr<HostGroup> host, const NcclLibrary& library) : host_(std::move(host)), library_(library) {}

  int size() const override { return host_->size(); }
  int rank() const override { return host_->rank(); }
  void all_reduce(const Call& call, void* data) override { host_->all_reduce(call, data); }
  [[noreturn]] void fail(const Call& call, const std::string& failure) override {
    host_->fail(call, failure);
    throw Error(failure);  // not reached
  }

  void all_reduce_device(const Call& call, void* device_data, void* stream) override {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const std::lock_guard<std::mutex> lock(mutex_);
    host_->agree(call);
    if (communicator_ == nullptr) connect(call, cuda_stream);
    if (call.length > 0) communicator_->all_reduce(call, device_data, cuda_stream);
  }

 private:
  /// Makes the communicator, with all replicas; each of them knows afterwards that all others have it.
  void connect(const Call& call, cudaStream_t stream) {
    NcclCommunicator made = nullptr;
    int device = 0;
    const NcclId id = exchange_id(call, stream);
    try {
      check(cudaGetDevice(&device), "there is no current device");
      made = init(id, device);
      communicator_ = std::make_unique<Communicator>(library_, made, device, host_);
    } catch (const Error& error) {
      host_->fail(call, error.what());
    }
    host_->agree(call);
  }

  /// The id that the first replica makes: the others add zeros to it.
  NcclId exchange_id(const Call& call, cudaStream_t stream) {
    constexpr size_t kWords = sizeof(NcclId) / sizeof(int64_t);
    int64_t words[kWords] = {};
    Call of_id = call;
    of_id.wire = collective::Wire::i64;
    of_id.reduction = collective::Reduction::sum;
    of_id.length = kWords;
    NcclId id{};
    try {
      if (is_capturing(stream)) {
        throw Error("NCCL connects replicas outside of a CUDA graph: run the model once before");
      }
      if (rank() == 0) library_.check(library_.call().GetUniqueId(&id), "no id can be made");
    } catch (const Error& error) {
      host_->fail(of_id, error.what());
    }
    std::memcpy(words, &id, sizeof id);
    host_->all_reduce(of_id, words);
    std::memcpy(&id, words, sizeof id);
    return id;
  }

  /// Waits for NCCL no longer than the deadline; a thread that still waits then is left behind.
  NcclCommunicator init(const NcclId& id, int device) {
    struct Result {
      NcclCommunicator communicator = nullptr;
      int code = 0;
    };
    std::packaged_task<Result()> task([&call = library_.call(), id, device, size = size(), rank = rank()] {
      Result result;
      cudaSetDevice(device);
      result.code = call.CommInitRank(&result.communicator, size, id, rank);
      return result;
    });
    std::future<Result> future = task.get_future();
    std::thread(std::move(task)).detach();
    if (future.wait_for(host_->deadline()) != std::future_status::ready) {
      throw Error("NCCL did not connect the replicas within " + collective::seconds_text(host_->deadline().count()));
    }
    const Result result = future.get();
    library_.check(result.code, "the replicas cannot be connected");
    return result.communicator;
  }

  const std::shared_ptr<HostGroup> host_;
  const NcclLibrary& library_;
  std::mutex mutex_;
  std::unique_ptr<Communicator> communicator_;
};

class NcclGroups final : public collective::Groups {
 public:
  NcclGroups(std::shared_ptr<collective::Groups> host, const NcclLibrary& library)
      : host_(std::move(host)), library_(library) {}

  std::shared_ptr<collective::Group> find(const std::string& name) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<collective::Group>& found = groups_[name];
    if (found != nullptr) return found;
    const auto group = host_->find(name);
    const auto host = std::dynamic_pointer_cast<HostGroup>(group);
    if (host == nullptr) throw Error("the group '" + name + "' cannot agree on headers: it is not one of the host");
    found = std::make_shared<NcclGroup>(host, library_);
    return found;
  }

 private:
  const std::shared_ptr<collective::Groups> host_;
  const NcclLibrary& library_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::shared_ptr<collective::Group>> groups_;
};

}  // namespace

std::shared_ptr<collective::Groups> nccl_groups(std::shared_ptr<collective::Groups> host, const NcclLibrary& library) {
  return std::make_shared<NcclGroups>(std::move(host), library);
}

}  // namespace bnpass::cuda
