#pragma once

#include <cstdint>

namespace headkit {

/// While one lives, blocks that run in its thread read constants and norms keep their scale: what
/// DirectPaths asks of a model.
class DirectRuns {
 public:
  DirectRuns() { ++alive_; }
  ~DirectRuns() { --alive_; }
  DirectRuns(const DirectRuns&) = delete;
  DirectRuns& operator=(const DirectRuns&) = delete;

  static bool in_this_thread() { return alive_ > 0; }

 private:
  inline static thread_local int64_t alive_ = 0;
};

}  // namespace headkit
