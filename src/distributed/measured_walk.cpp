#include "distributed/measured_walk.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <set>
#include <string>

#include "core/json.h"
#include "core/sha256.h"
#include "distributed/packed_tensors.h"
#include "distributed/sharing_state.h"
#include "headkit/core/error.h"
#include "headkit/models/data_hash.h"

namespace headkit {
namespace {

std::string batch_hash(const Batch& batch) {
  Sha256 sum;
  for (const std::string& example : example_hashes(batch)) sum.update(example);
  return sum.hex();
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    return known.what();
  } catch (...) {
    return "an unknown error";
  }
}

// One walk over data together with the other processes: an exchange at its begin, one for each
// round of as many batches as there are processes, one at its end. Exchanges begin with what must
// be the same everywhere, so that all processes stop where it is not.
class SharedWalk {
 public:
  SharedWalk(const char* operation, Collective& collective, WalkJournal* journal, int64_t walk)
      : operation_(operation), collective_(collective), journal_(journal), walk_(walk) {
    std::vector<int64_t> own;
    if (journal_ != nullptr) own = journal_->batches(walk_);
    const auto all = exchange("begin", pack({at::tensor(own, at::kLong)}));
    const at::Tensor known = unpack(all.front())[0];
    known_.insert(known.const_data_ptr<int64_t>(), known.const_data_ptr<int64_t>() + known.numel());
  }

  int64_t size() const { return collective_.size(); }
  bool knows(int64_t batch) const { return known_.count(batch) > 0; }

  // What all processes measured of the batches first .. first + hashes.size() - 1.
  std::vector<Measured> round(int64_t first, const std::vector<std::string>& hashes,
                              const std::function<Measured(int64_t place)>& measure) {
    const auto count = static_cast<int64_t>(hashes.size());
    std::string own;
    std::exception_ptr error;
    const int64_t place = collective_.rank();
    if (place < count && !knows(first + place)) {
      try {
        own = pack(measure(place));
      } catch (...) {
        error = std::current_exception();
      }
    }
    std::string same = "batches from " + std::to_string(first);
    for (const std::string& hash : hashes) same += " " + hash;
    const std::vector<std::string> all = exchange(same, own, error);
    std::vector<Measured> found;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t batch = first + i;
      if (!knows(batch)) {
        const std::string& bytes = all[static_cast<size_t>(i)];
        if (journal_ != nullptr)
          journal_->add(walk_, batch, hashes[static_cast<size_t>(i)] + bytes);
        found.push_back(unpack(bytes));
        continue;
      }
      found.push_back(unpack(from_journal(batch, hashes[static_cast<size_t>(i)])));
    }
    return found;
  }

  // `seen`: what all processes must have seen until here.
  std::vector<std::string> end(const std::string& seen, const std::string& own = "") {
    return exchange("end after " + seen, own);
  }

  // Tells the other processes, which wait for this one, why it comes no more.
  void fail(const std::exception_ptr& error) {
    if (told_) return;
    try {
      exchange("", "", error);
    } catch (...) {  // this error, or one that hides it: the caller throws the first
    }
  }

 private:
  // What the journal, which only the first process has, keeps of a batch behind its hash.
  std::string from_journal(int64_t batch, const std::string& hash) {
    const std::string own = journal_ != nullptr ? journal_->read(walk_, batch) : "";
    std::string entry = exchange("known batch " + std::to_string(batch), own).front();
    HEADKIT_CHECK(entry.compare(0, hash.size(), hash) == 0, operation_,
                  "the data that the journal was written with", "another batch ", batch);
    return entry.substr(hash.size());
  }

  std::vector<std::string> exchange(const std::string& same, const std::string& own,
                                    const std::exception_ptr& error = nullptr) {
    const Json head{{"same", std::string(operation_) + ", " + same},
                    {"error", error ? message_of(error) : std::string()}};
    const std::string text = head.dump(-1, ' ', false, Json::error_handler_t::replace);
    told_ = true;
    std::vector<std::string> all =
        collective_.all_gather(std::to_string(text.size()) + "\n" + text + own);
    std::vector<std::string> sames, errors;
    for (std::string& each : all) {
      const size_t line = each.find('\n');
      const size_t length = std::stoul(each.substr(0, line));
      const Json of = Json::parse(each.substr(line + 1, length));
      sames.push_back(of["same"]);
      errors.push_back(of["error"]);
      each.erase(0, line + 1 + length);
    }
    if (error) std::rethrow_exception(error);
    for (size_t rank = 0; rank < errors.size(); ++rank) {
      HEADKIT_CHECK_RUNTIME(errors[rank].empty(), operation_,
                            "every process to get through its batches", "an error in process ",
                            rank, ": ", errors[rank]);
    }
    for (size_t rank = 1; rank < sames.size(); ++rank) {
      HEADKIT_CHECK(sames[rank] == sames[0], operation_,
                    "the same calls with the same data in the same order in every process (does a "
                    "data loader shuffle?)",
                    "'", shortened(sames[rank]), "' in process ", rank, " and '",
                    shortened(sames[0]), "' in process 0");
    }
    told_ = false;
    return all;
  }

  static std::string shortened(const std::string& text) {
    constexpr size_t kMost = 60;
    return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
  }

  const char* operation_;
  Collective& collective_;
  WalkJournal* journal_;
  int64_t walk_;
  std::set<int64_t> known_;
  bool told_ = false;  // the other processes know that this one throws
};

// A process alone: a journal needs no others.
class Alone final : public Collective {
 public:
  int64_t rank() const override { return 0; }
  int64_t size() const override { return 1; }
  std::vector<std::string> all_gather(const std::string& own) override { return {own}; }
};

// Batches that wait for a round.
struct Waiting {
  std::vector<Batch> batches;
  std::vector<int64_t> first;  // examples before each
  std::vector<std::string> hashes;

  void add(const Batch& batch, int64_t before) {
    batches.push_back(batch);
    first.push_back(before);
    hashes.push_back(batch_hash(batch));
  }
  int64_t count() const { return static_cast<int64_t>(batches.size()); }
};

// Calls `visit` with the batches that hold examples, and the examples before each.
int64_t for_each_filled(const DataSource& data, const Progress& progress,
                        const std::function<void(const Batch&, int64_t)>& visit) {
  int64_t examples = 0, batches = 0;
  data.for_each([&](const Batch& batch) {
    if (const int64_t count = batch_size(batch); count > 0) {
      visit(batch, examples);
      examples += count;
    }
    if (progress) progress(++batches, data.size().value_or(-1));
  });
  return examples;
}

void add_to(Measured& sums, const Measured& more) {
  if (sums.empty()) sums.resize(more.size());
  for (size_t i = 0; i < more.size(); ++i) {
    if (!more[i].defined()) continue;
    const at::Tensor values = more[i].to(at::kDouble);
    sums[i] = sums[i].defined() ? sums[i] + values : values;
  }
}

}  // namespace

int64_t for_each_measured(
    const char* operation, const DataSource& data, const Progress& progress,
    const std::function<Measured(const Batch& batch, int64_t first)>& measure,
    const std::function<void(const Batch& batch, const Measured& measured)>& take) {
  SharingState& state = sharing_state();
  if (state.collective == nullptr && state.journal == nullptr) {
    return for_each_filled(data, progress, [&](const Batch& batch, int64_t first) {
      take(batch, measure(batch, first));
    });
  }
  Alone alone;
  SharedWalk walk(operation, state.collective ? *state.collective : alone, state.journal.get(),
                  state.walks++);
  int64_t done = 0, examples = 0;
  Waiting waiting;
  const auto finish_round = [&] {
    const auto found = walk.round(done, waiting.hashes, [&](int64_t place) {
      return measure(waiting.batches[place], waiting.first[place]);
    });
    for (size_t i = 0; i < found.size(); ++i) take(waiting.batches[i], found[i]);
    done += waiting.count();
    waiting = {};
  };
  try {
    examples = for_each_filled(data, progress, [&](const Batch& batch, int64_t first) {
      waiting.add(batch, first);
      if (waiting.count() == walk.size()) finish_round();
    });
    if (waiting.count() > 0) finish_round();
  } catch (...) {
    walk.fail(std::current_exception());
    throw;
  }
  walk.end(std::to_string(done) + " batches");
  return examples;
}

Measured sum_measured(const char* operation, const DataSource& data, const Progress& progress,
                      const std::function<Measured(const Batch& batch)>& measure,
                      int64_t& examples) {
  SharingState& state = sharing_state();
  Measured sums;
  if (state.collective == nullptr) {
    examples = for_each_filled(data, progress,
                               [&](const Batch& batch, int64_t) { add_to(sums, measure(batch)); });
    return sums;
  }
  Collective& collective = *state.collective;
  SharedWalk walk(operation, collective, nullptr, -1);
  int64_t batches = 0;
  Sha256 seen;
  try {
    examples = for_each_filled(data, progress, [&](const Batch& batch, int64_t) {
      seen.update(batch_hash(batch));
      if (batches++ % collective.size() == collective.rank()) add_to(sums, measure(batch));
    });
  } catch (...) {
    walk.fail(std::current_exception());
    throw;
  }
  Measured all;
  for (const std::string& each : walk.end(seen.hex(), pack(sums))) {
    if (Measured part = unpack(each); !part.empty()) add_to(all, part);
  }
  return all;
}

}  // namespace headkit
