#include "ort/register.h"

#include <deque>
#include <map>
#include <mutex>

namespace bnpass::ort {
namespace {

/// All operators of one set of groups. ONNX Runtime keeps pointers to them for as long as it likes: never destroyed.
class Operators {
 public:
  explicit Operators(const std::shared_ptr<collective::Groups>& groups) {
    for (Signature& signature : cpu_signatures()) all_.emplace_back(std::move(signature), nullptr, groups);
    for (const Provider& provider : more_providers()) {
      for (Signature& signature : provider.signatures()) all_.emplace_back(std::move(signature), provider.name, groups);
    }
  }

  /// The domain in a runtime, made once: a process may hold several runtimes.
  Domain* domain(const Api& api, Table* table) {
    Domain*& found = domains_[table];
    if (found == nullptr) {
      Domain* made = nullptr;
      api.call<CreateCustomOpDomain>("bnpass", &made);
      for (const Operator& op : all_) api.call<CustomOpDomain_Add>(made, &op);
      found = made;
    }
    return found;
  }

 private:
  std::deque<Operator> all_;
  std::map<Table*, Domain*> domains_;
};

Domain* domain_of(const Api& api, Table* table) {
  static auto& mutex = *new std::mutex;
  static auto& known = *new std::map<std::shared_ptr<collective::Groups>, Operators>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto groups = collective::groups_in_use();
  return known.try_emplace(groups, groups).first->second.domain(api, table);
}

/// A status that says that the runtime is too old, made with the newest table that it has.
Status* too_old(const ApiBase& base) {
  for (uint32_t version = api_version - 1; version > 0; --version) {
    Table* table = base.get_api(version);
    if (table == nullptr) continue;
    return Api(table).status(Code::not_implemented, "bnpass needs ONNX Runtime 1." + std::to_string(api_version) +
                                                        " or newer, this is " + base.version());
  }
  return nullptr;
}

}  // namespace

std::vector<Provider>& more_providers() {
  static auto& all = *new std::vector<Provider>;
  return all;
}

}  // namespace bnpass::ort

/// What ONNX Runtime calls when the library is registered on session options.
extern "C" __attribute__((visibility("default"))) bnpass::ort::Status* RegisterCustomOps(
    bnpass::ort::SessionOptions* options, const bnpass::ort::ApiBase* base) {
  using namespace bnpass::ort;
  Table* table = base->get_api(api_version);
  if (table == nullptr) return too_old(*base);
  const Api api(table);
  return api.guarded([&] { api.call<AddCustomOpDomain>(options, domain_of(api, table)); });
}
