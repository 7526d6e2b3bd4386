// Calls into ONNX Runtime's table: a status that is not null becomes an Error, an exception becomes a status.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "core/error.h"
#include "ort/ort_abi.h"

namespace bnpass::ort {

class Api {
 public:
  explicit Api(Table* table) : table_(table) {}

  /// Calls a function that returns a status; throws Error with its text if it is not null.
  template <class Function, class... Arguments>
  void call(Arguments&&... arguments) const {
    if (Status* status = Function::in(table_)(std::forward<Arguments>(arguments)...)) raise(status);
  }

  /// As call, but tells with false that there was an error, and its text.
  template <class Function, class... Arguments>
  bool tries(std::string& text, Arguments&&... arguments) const {
    Status* status = Function::in(table_)(std::forward<Arguments>(arguments)...);
    if (status == nullptr) return true;
    text = GetErrorMessage::in(table_)(status);
    ReleaseStatus::in(table_)(status);
    return false;
  }

  /// Calls a function that returns nothing.
  template <class Function, class... Arguments>
  void release(Arguments&&... arguments) const {
    Function::in(table_)(std::forward<Arguments>(arguments)...);
  }

  Status* status(Code code, const std::string& text) const {
    return CreateStatus::in(table_)(static_cast<int>(code), text.c_str());
  }

  /// Runs body; what it throws is returned as a status. No exception crosses the border to ONNX Runtime.
  template <class Body>
  Status* guarded(Body&& body) const noexcept {
    try {
      std::forward<Body>(body)();
      return nullptr;
    } catch (const Error& error) {
      return status(error.code(), error.what());
    } catch (const std::bad_alloc&) {
      return status(Code::fail, "bnpass: out of memory");
    } catch (const std::exception& error) {
      return status(Code::fail, std::string("bnpass: ") + error.what());
    } catch (...) {
      return status(Code::fail, "bnpass: an exception of unknown type");
    }
  }

 private:
  [[noreturn]] void raise(Status* status) const {
    const std::string text = GetErrorMessage::in(table_)(status);
    const int code = GetErrorCode::in(table_)(status);
    ReleaseStatus::in(table_)(status);
    throw Error(text, static_cast<Code>(code));
  }

  Table* table_;
};

}  // namespace bnpass::ort
