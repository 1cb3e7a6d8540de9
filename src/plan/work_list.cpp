#include "headkit/plan/work_list.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

void fill_columns(WorkList& list) {
  list.col_offset.assign(list.heads + 1, 0);
  list.sample_index.resize(list.head_index.size());
  list.pair_of.resize(list.head_index.size());
  for (const int32_t head : list.head_index) ++list.col_offset[head + 1];
  for (int64_t head = 0; head < list.heads; ++head) {
    list.col_offset[head + 1] += list.col_offset[head];
  }
  std::vector<int32_t> next(list.col_offset.begin(), list.col_offset.end() - 1);
  for (int64_t sample = 0; sample < list.batch; ++sample) {
    for (int32_t pair = list.row_offset[sample]; pair < list.row_offset[sample + 1]; ++pair) {
      const int32_t place = next[list.head_index[pair]]++;
      list.sample_index[place] = static_cast<int32_t>(sample);
      list.pair_of[place] = pair;
    }
  }
}

template <typename Scalar>
void fill_rows(WorkList& list, const at::Tensor& gate) {
  const auto cells = gate.accessor<const Scalar, 2>();
  for (int64_t sample = 0; sample < list.batch; ++sample) {
    for (int64_t head = 0; head < list.heads; ++head) {
      const float value = static_cast<float>(cells[sample][head]);
      HEADKIT_CHECK(std::isfinite(value), "work_list", "finite gates", value, " for sample ",
                    sample, ", head ", head);
      if (value == 0.0f) continue;
      list.head_index.push_back(static_cast<int32_t>(head));
      list.scale.push_back(value);
    }
    list.row_offset[sample + 1] = static_cast<int32_t>(list.head_index.size());
  }
}

void check_offsets(const char* operation, const char* name, const std::vector<int32_t>& offsets,
                   int64_t rows, int64_t pairs) {
  HEADKIT_CHECK(static_cast<int64_t>(offsets.size()) == rows + 1 && offsets.front() == 0 &&
                    offsets.back() == pairs,
                operation, c10::str(name, " of ", rows + 1, " entries from 0 to ", pairs),
                offsets.size(), " entries");
  for (int64_t row = 0; row < rows; ++row) {
    HEADKIT_CHECK(offsets[row] <= offsets[row + 1], operation, c10::str(name, " that never falls"),
                  offsets[row], " before ", offsets[row + 1]);
  }
}

void check_indices(const char* operation, const char* name, const std::vector<int32_t>& offsets,
                   const std::vector<int32_t>& indices, int64_t bound) {
  for (size_t row = 0; row + 1 < offsets.size(); ++row) {
    for (int32_t place = offsets[row]; place < offsets[row + 1]; ++place) {
      const bool ascending = place == offsets[row] || indices[place - 1] < indices[place];
      HEADKIT_CHECK(indices[place] >= 0 && indices[place] < bound && ascending, operation,
                    c10::str(name, " ascending below ", bound), indices[place], " at place ",
                    place);
    }
  }
}

}  // namespace

at::Tensor WorkList::to_keep() const {
  at::Tensor keep = at::zeros({batch, heads}, at::kBool);
  auto cells = keep.accessor<bool, 2>();
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int32_t pair = row_offset[sample]; pair < row_offset[sample + 1]; ++pair) {
      cells[sample][head_index[pair]] = true;
    }
  }
  return keep;
}

void WorkList::check(const char* operation) const {
  HEADKIT_CHECK(batch >= 0 && heads >= 0, operation, "a batch and heads >= 0", batch, " and ",
                heads);
  const size_t count = head_index.size();
  HEADKIT_CHECK(scale.size() == count && sample_index.size() == count && pair_of.size() == count,
                operation, c10::str(count, " entries in every list of pairs"), scale.size(), ", ",
                sample_index.size(), " and ", pair_of.size());
  check_offsets(operation, "row_offset", row_offset, batch, pairs());
  check_offsets(operation, "col_offset", col_offset, heads, pairs());
  check_indices(operation, "head_index", row_offset, head_index, heads);
  for (const float value : scale) {
    HEADKIT_CHECK(std::isfinite(value) && value != 0.0f, operation, "finite scales other than 0",
                  value);
  }
  WorkList expected;
  expected.batch = batch;
  expected.heads = heads;
  expected.row_offset = row_offset;
  expected.head_index = head_index;
  fill_columns(expected);
  HEADKIT_CHECK(expected.col_offset == col_offset && expected.sample_index == sample_index &&
                    expected.pair_of == pair_of,
                operation, "an order by head that holds the pairs of the order by sample",
                "another one");
}

std::string WorkList::to_json() const {
  return Json{{"batch", batch},
              {"heads", heads},
              {"row_offset", row_offset},
              {"head_index", head_index},
              {"scale", scale}}
      .dump();
}

WorkList WorkList::from_json(const std::string& text) {
  constexpr auto kOperation = "work_list";
  const Json json = parse_json(kOperation, text);
  WorkList list;
  list.batch = integer_member(kOperation, json, "batch");
  list.heads = integer_member(kOperation, json, "heads");
  try {
    list.row_offset = member(kOperation, json, "row_offset").get<std::vector<int32_t>>();
    list.head_index = member(kOperation, json, "head_index").get<std::vector<int32_t>>();
    list.scale = member(kOperation, json, "scale").get<std::vector<float>>();
  } catch (const Json::exception& error) {
    throw std::invalid_argument(error_message(kOperation, "lists of numbers", error.what()));
  }
  constexpr int64_t kMaxHeads = int64_t{1} << 20;
  HEADKIT_CHECK(list.heads >= 0 && list.heads <= kMaxHeads && list.batch >= 0, kOperation,
                "a batch and heads in range", list.batch, " and ", list.heads);
  check_offsets(kOperation, "row_offset", list.row_offset, list.batch, list.pairs());
  check_indices(kOperation, "head_index", list.row_offset, list.head_index, list.heads);
  fill_columns(list);
  list.check(kOperation);
  return list;
}

WorkList make_work_list(const at::Tensor& gate) {
  HEADKIT_CHECK(gate.defined() && gate.dim() == 2 && gate.device().is_cpu(), "work_list",
                "gates of shape [batch, heads] on CPU",
                gate.defined() ? c10::str("shape ", gate.sizes(), " on ", gate.device())
                               : std::string("none"));
  WorkList list;
  list.batch = gate.size(0);
  list.heads = gate.size(1);
  list.row_offset.assign(list.batch + 1, 0);
  if (gate.scalar_type() == at::kFloat) {
    fill_rows<float>(list, gate);
  } else {
    HEADKIT_CHECK(gate.scalar_type() == at::kDouble, "work_list", "gates of float32 or float64",
                  gate.scalar_type());
    fill_rows<double>(list, gate);
  }
  fill_columns(list);
  return list;
}

WorkList make_dense_work_list(int64_t batch, int64_t heads) {
  HEADKIT_CHECK(batch >= 0 && heads >= 0, "work_list", "a batch and heads >= 0", batch, " and ",
                heads);
  return make_work_list(at::ones({batch, heads}));
}

}  // namespace headkit
