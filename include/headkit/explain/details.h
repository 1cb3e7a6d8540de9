#pragma once

#include <memory>
#include <utility>

namespace headkit {

/// A value that may be missing. Copies share it, and nobody changes it. T need not be complete
/// where it is only passed on.
template <typename T>
class Details {
 public:
  Details() = default;
  Details(T value) : value_(std::make_shared<const T>(std::move(value))) {}
  explicit operator bool() const { return value_ != nullptr; }
  const T& operator*() const { return *value_; }
  const T* operator->() const { return value_.get(); }
  /// The value, or an empty one.
  T value_or_new() const { return value_ ? *value_ : T(); }
  bool operator==(const Details& other) const;

 private:
  std::shared_ptr<const T> value_;
};

}  // namespace headkit
