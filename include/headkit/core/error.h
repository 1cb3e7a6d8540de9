#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace headkit {

/// Builds `[operation] expected ...; found ...`, the form of every error message of headkit.
template <typename... Found>
std::string error_message(const char* operation, const std::string& expected,
                          const Found&... found) {
  std::ostringstream text;
  text << "[" << operation << "] expected " << expected << "; found ";
  (text << ... << found);
  return text.str();
}

}  // namespace headkit

/// Throws std::invalid_argument (Python: ValueError) unless `condition` holds.
///
///     HEADKIT_CHECK(scores.dim() == 2, "prune", "scores of shape [layers, heads]", "shape ",
///                   scores.sizes());
#define HEADKIT_CHECK(condition, operation, expected, ...)                                     \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      throw std::invalid_argument(::headkit::error_message(operation, expected, __VA_ARGS__)); \
    }                                                                                          \
  } while (false)

/// As HEADKIT_CHECK for an index: std::out_of_range (Python: IndexError).
#define HEADKIT_CHECK_INDEX(condition, operation, expected, ...)                           \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      throw std::out_of_range(::headkit::error_message(operation, expected, __VA_ARGS__)); \
    }                                                                                      \
  } while (false)

/// As HEADKIT_CHECK for what depends on the machine, a file or a device: std::runtime_error.
#define HEADKIT_CHECK_RUNTIME(condition, operation, expected, ...)                          \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      throw std::runtime_error(::headkit::error_message(operation, expected, __VA_ARGS__)); \
    }                                                                                       \
  } while (false)
