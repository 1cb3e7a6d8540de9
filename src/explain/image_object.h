#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "headkit/explain/image_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {

/// Share of two sets of patches that both hold: |a and b| / |a or b|; 1 for two empty sets.
double overlap_of(int64_t both, int64_t a, int64_t b);

/// Role object: what CLS looks at against the mask of the object.
class ImageObject {
 public:
  /// `masks`: bool [images, rows, columns] or undefined.
  ImageObject(const HeadLayout& layout, const PatchGrid& grid, const at::Tensor& masks,
              const RoleMeasure& measure);
  void add(const RoleRows& rows, int64_t head);
  void merge(const ImageObject& other);
  void finish(const RoleEnd& end, RoleTable& table) const;

 private:
  using PatchSet = std::vector<uint8_t>;  // 1 = in it

  void read_image(int64_t image);
  /// Mean overlap of the best box around the centre, chosen on the images of even number, with the
  /// masks of the odd ones; unset without both.
  std::optional<double> best_box() const;

  PatchGrid grid_;
  RoleMeasure measure_;
  at::Tensor masks_;  // bool [images, patches]
  RoleSums sums_;
  std::vector<bool> seen_;  // by image
  int64_t image_ = -1;
  PatchSet mask_;
  int64_t mask_size_ = 0;
  std::vector<PatchSet> permuted_;  // by draw
};

}  // namespace headkit
