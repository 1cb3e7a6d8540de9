#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string>

namespace headkit {

/// Checks of one operator's tensors against its main one. Each throws std::invalid_argument. Reads
/// sizes, dtypes and devices only, so that it serves tensors without data and symbolic sizes.
class ArgumentCheck {
 public:
  /// Checks `like` itself: defined, three-dimensional, of a floating dtype that we support.
  ArgumentCheck(const char* operation, const std::string& name, const std::string& letters,
                const at::Tensor& like);

  /// Shape, dtype, device and layout.
  void tensor(const at::Tensor& tensor, const std::string& name, const std::string& letters,
              c10::SymIntArrayRef shape) const;
  void dtype(const at::Tensor& tensor, const std::string& name) const;
  void device_and_layout(const at::Tensor& tensor, const std::string& name) const;
  /// Both or none, of shape [B or 1, length, dr] with an even dr <= head_dim.
  void rotary(const std::optional<at::Tensor>& cosines, const std::optional<at::Tensor>& sines,
              const std::string& letter, const c10::SymInt& length,
              const c10::SymInt& head_dim) const;
  /// `weight` of shape [head_dim], where given, and a positive eps.
  void norm(const std::optional<at::Tensor>& weight, const std::string& name,
            const c10::SymInt& head_dim, double eps) const;
  /// " with x of shape [2, 4, 6]"
  std::string context() const;
  const char* operation() const { return operation_; }

  static bool equal(const c10::SymInt& a, const c10::SymInt& b);
  static bool has_shape(const at::Tensor& tensor, c10::SymIntArrayRef shape);
  static bool broadcasts_to(const at::Tensor& tensor, c10::SymIntArrayRef shape);

 private:
  const char* operation_;
  std::string name_;
  const at::Tensor& like_;
};

}  // namespace headkit
