// The one exception of this library: a sentence for the user, and ONNX Runtime's code for it.
#pragma once

#include <stdexcept>
#include <string>

namespace bnpass {

enum class Code : int { fail = 1, invalid_argument = 2, runtime = 6, not_implemented = 9 };

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& sentence, Code code = Code::invalid_argument)
      : std::runtime_error(sentence), code_(code) {}
  Code code() const noexcept { return code_; }

 private:
  Code code_;
};

}  // namespace bnpass
