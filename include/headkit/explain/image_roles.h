#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/explain/role_accumulator.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Where the patches of an image are among the tokens: row by row from `first_patch` on. All other
/// tokens (CLS, registers) are special.
///
///     CLS  register  patch(0,0)  patch(0,1) ... patch(1,0) ...      first_patch = 2
struct PatchGrid {
  int64_t rows = 0, columns = 0;
  int64_t first_patch = 1;
  double patch_size = 1;                ///< pixels
  int64_t cls = 0;                      ///< -1 = there is none
  std::vector<int64_t> registers = {};  ///< tokens

  int64_t patches() const { return rows * columns; }
};

/// What is known of the images beside the model's input.
struct ImageKnowledge {
  /// Bool [images, rows, columns]: the patches of the object; undefined = not known, and the role
  /// object is not assessed.
  at::Tensor masks = {};
  /// Float [images, tokens]: norms of the hidden states that the model ends with, for
  /// artefact_sink; undefined = registers alone count. See `final_token_norms`.
  at::Tensor norms = {};
};

/// Roles of patches: image_local (mean distance by the diagonal of the image; in pixels among the
/// details), image_offset (share of rows whose largest weight lies at one step (down, right) of up
/// to 4; the variant is the best step), same_row, same_column, object (IoU of the smallest set of
/// patches with 60 % of what CLS gives to patches with the object's mask), artefact_sink (mass on
/// registers and on the 1 % of patches with the largest norm). Rows are those of patches, of CLS
/// for object. Special tokens are taken out of all but artefact_sink.
///
/// Nulls: uniform attention; for image_offset keys of each row permuted; for object the best box
/// around the centre, chosen on the images of even number and scored on the odd ones, and masks
/// whose patches are permuted.
///
/// Holds 1.3 kB for each head and image. Throws std::invalid_argument for a grid that makes no
/// sense, or knowledge of other shapes; while it runs, if an image has other tokens than the grid,
/// or there are more images than masks.
///
/// Source: Raghu et al. 2021 (distance); Caron et al. 2021 (60 % of the mass); Darcet et al. 2023
/// (artefacts, registers).
std::unique_ptr<RoleAccumulator> image_roles(const HeadLayout& layout, const PatchGrid& grid,
                                             const ImageKnowledge& known = {},
                                             const RoleMeasure& measure = {});

/// Norms of the hidden states after the last layer, float [examples, tokens]: one forward. Throws
/// std::invalid_argument if examples have different numbers of tokens.
at::Tensor final_token_norms(GatedModel& model, const DataSource& data);

}  // namespace headkit
