#include "operators/argument_check.h"

#include <ATen/ATen.h>

#include <cmath>
#include <sstream>

#include "headkit/core/error.h"

namespace headkit {

ArgumentCheck::ArgumentCheck(const char* operation, const std::string& name,
                             const std::string& letters, const at::Tensor& like)
    : operation_(operation), name_(name), like_(like) {
  HEADKIT_CHECK(like.defined() && like.dim() == 3, operation, name + " of shape " + letters,
                "shape ", like.defined() ? like.sym_sizes() : c10::SymIntArrayRef());
  const auto dtype = like.scalar_type();
  HEADKIT_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      operation, name + " of dtype Float, Double, BFloat16 or Half", "dtype ", dtype);
  device_and_layout(like, name);
}

bool ArgumentCheck::equal(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

bool ArgumentCheck::has_shape(const at::Tensor& tensor, c10::SymIntArrayRef shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (!equal(tensor.sym_size(d), shape[d])) return false;
  }
  return true;
}

bool ArgumentCheck::broadcasts_to(const at::Tensor& tensor, c10::SymIntArrayRef shape) {
  const int64_t missing = static_cast<int64_t>(shape.size()) - tensor.dim();
  if (missing < 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const c10::SymInt size = tensor.sym_size(d);
    const c10::SymBool fits = size.sym_eq(1).sym_or(size.sym_eq(shape[d + missing]));
    if (!fits.expect_true(__FILE__, __LINE__)) return false;
  }
  return true;
}

std::string ArgumentCheck::context() const {
  std::ostringstream text;
  text << " with " << name_ << " of shape " << like_.sym_sizes();
  return text.str();
}

void ArgumentCheck::dtype(const at::Tensor& tensor, const std::string& name) const {
  HEADKIT_CHECK(
      tensor.scalar_type() == like_.scalar_type(), operation_,
      name + " of the dtype of " + name_ + " (" + c10::toString(like_.scalar_type()) + ")",
      "dtype ", tensor.scalar_type());
}

void ArgumentCheck::device_and_layout(const at::Tensor& tensor, const std::string& name) const {
  HEADKIT_CHECK(tensor.device() == like_.device(), operation_,
                name + " on the device of " + name_ + " (" + like_.device().str() + ")", "device ",
                tensor.device());
  HEADKIT_CHECK(tensor.layout() == at::kStrided, operation_, name + " of strided layout", "layout ",
                tensor.layout());
}

void ArgumentCheck::tensor(const at::Tensor& tensor, const std::string& name,
                           const std::string& letters, c10::SymIntArrayRef shape) const {
  HEADKIT_CHECK(tensor.defined(), operation_, name, "none");
  HEADKIT_CHECK(has_shape(tensor, shape), operation_, name + " of shape " + letters, "shape ",
                tensor.sym_sizes(), context());
  dtype(tensor, name);
  device_and_layout(tensor, name);
}

void ArgumentCheck::rotary(const std::optional<at::Tensor>& cosines,
                           const std::optional<at::Tensor>& sines, const std::string& letter,
                           const c10::SymInt& length, const c10::SymInt& head_dim) const {
  HEADKIT_CHECK(cosines.has_value() == sines.has_value(), operation_,
                "rotary_cos and rotary_sin together", cosines ? "rotary_cos" : "rotary_sin",
                " alone");
  if (!cosines) return;
  HEADKIT_CHECK(cosines->dim() == 3 &&
                    broadcasts_to(*cosines, {like_.sym_size(0), length, cosines->sym_size(2)}) &&
                    equal(cosines->sym_size(1), length) && equal(cosines->sym_size(2) % 2, 0) &&
                    head_dim >= cosines->sym_size(2),
                operation_,
                "rotary_cos of shape [B or 1, " + letter + ", dr] with an even dr <= dh", "shape ",
                cosines->sym_sizes(), context(), " and dh = ", head_dim);
  dtype(*cosines, "rotary_cos");
  device_and_layout(*cosines, "rotary_cos");
  tensor(*sines, "rotary_sin", "[B or 1, " + letter + ", dr], as rotary_cos", cosines->sym_sizes());
}

void ArgumentCheck::norm(const std::optional<at::Tensor>& weight, const std::string& name,
                         const c10::SymInt& head_dim, double eps) const {
  HEADKIT_CHECK(std::isfinite(eps) && eps >= 0.0, operation_, "norm_eps of at least 0", eps);
  if (weight) tensor(*weight, name, "[dh]", {head_dim});
}

}  // namespace headkit
