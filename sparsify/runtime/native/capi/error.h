// How the functions of the C ABI fail: a status, and a sentence for the calling thread.
#ifndef SPARSIFY_CAPI_ERROR_H_
#define SPARSIFY_CAPI_ERROR_H_

#include <cstdint>
#include <exception>
#include <string>

namespace sparsify {
namespace capi {

// Of the calling thread's latest failure; sparsify_last_error returns it.
inline std::string& LastError() {
  thread_local std::string message;
  return message;
}

inline int32_t Fail(const std::string& message) {
  LastError() = message;
  return 1;
}

// Runs a body that returns a status; no C++ exception leaves the library.
template <class Body>
int32_t Guard(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return Fail(error.what());
  }
}

}  // namespace capi
}  // namespace sparsify

#endif  // SPARSIFY_CAPI_ERROR_H_
