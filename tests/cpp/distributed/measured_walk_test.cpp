#include "distributed/measured_walk.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "headkit/distributed/shared_walks.h"
#include "support/scratch_folder.h"
#include "support/thread_collective.h"

namespace headkit {
namespace {

// Batches of these sizes; example n of all holds n.
std::vector<Batch> numbered(const std::vector<int64_t>& sizes) {
  std::vector<Batch> batches;
  int64_t first = 0;
  for (const int64_t size : sizes) {
    batches.push_back({{"input_ids", at::arange(first, first + size).unsqueeze(1)}});
    first += size;
  }
  return batches;
}

// What a walk hands over, in order, and which batches this thread measured.
struct Walked {
  std::vector<int64_t> taken, measured;
  int64_t examples = 0;
};

Walked walk(const std::vector<Batch>& batches,
            const std::function<void(int64_t first)>& before = {}) {
  Walked found;
  found.examples = for_each_measured(
      "walk", BatchList(batches), {},
      [&](const Batch& batch, int64_t first) -> Measured {
        if (before) before(first);
        found.measured.push_back(first);
        const at::Tensor& ids = batch.at("input_ids");
        EXPECT_EQ(ids[0][0].item<int64_t>(), first);
        return {ids.to(at::kDouble).square(), at::Tensor()};
      },
      [&](const Batch& batch, const Measured& measured) {
        EXPECT_FALSE(measured.at(1).defined());
        EXPECT_TRUE(measured.at(0).equal(batch.at("input_ids").to(at::kDouble).square()));
        found.taken.push_back(batch.at("input_ids")[0][0].item<int64_t>());
      });
  return found;
}

TEST(MeasuredWalkTest, EveryProcessTakesAllInOrderAndMeasuresItsPart) {
  for (const int64_t processes : {1, 2, 3, 5}) {
    std::vector<Walked> found(static_cast<size_t>(processes));
    const auto errors = testing::on_ranks(processes, [&](std::shared_ptr<Collective> collective) {
      const SharedWalks sharing(collective);
      found[static_cast<size_t>(collective->rank())] = walk(numbered({2, 3, 0, 1, 4}));
    });
    EXPECT_EQ(errors, std::vector<std::string>(static_cast<size_t>(processes)));
    std::multiset<int64_t> measured;
    for (const Walked& each : found) {
      EXPECT_EQ(each.taken, (std::vector<int64_t>{0, 2, 5, 6}));
      EXPECT_EQ(each.examples, 10);
      measured.insert(each.measured.begin(), each.measured.end());
    }
    EXPECT_EQ(measured, (std::multiset<int64_t>{0, 2, 5, 6}));
  }
}

TEST(MeasuredWalkTest, SumsAreThoseOfOneProcess) {
  const auto sum = [] {
    int64_t examples = 0;
    const Measured found = sum_measured(
        "sum", BatchList(numbered({2, 3, 1})), {},
        [](const Batch& batch) -> Measured { return {batch.at("input_ids").sum()}; }, examples);
    return std::make_pair(found.at(0).item<double>(), examples);
  };
  EXPECT_EQ(sum(), (std::pair<double, int64_t>(15, 6)));
  for (const int64_t processes : {2, 4}) {
    const auto errors = testing::on_ranks(processes, [&](std::shared_ptr<Collective> collective) {
      const SharedWalks sharing(collective);
      EXPECT_EQ(sum(), (std::pair<double, int64_t>(15, 6)));
    });
    EXPECT_EQ(errors, std::vector<std::string>(static_cast<size_t>(processes)));
  }
}

TEST(MeasuredWalkTest, OtherDataAnywhereStopAll) {
  const std::vector<std::vector<Batch>> given{numbered({2, 2, 2}), numbered({2, 2, 2}),
                                              numbered({2, 2, 3})};
  std::vector<std::vector<Batch>> shorter = given;
  shorter[2] = numbered({2, 2});
  for (const auto& data : {given, shorter}) {
    const auto errors = testing::on_ranks(3, [&](std::shared_ptr<Collective> collective) {
      const SharedWalks sharing(collective);
      walk(data[static_cast<size_t>(collective->rank())]);
    });
    for (const std::string& error : errors) {
      EXPECT_NE(error.find("[walk] expected the same calls with the same data"), std::string::npos)
          << error;
    }
  }
}

TEST(MeasuredWalkTest, AnErrorOfOneProcessReachesAll) {
  for (const int64_t where : {0, 2, 6}) {
    const auto errors = testing::on_ranks(3, [&](std::shared_ptr<Collective> collective) {
      const SharedWalks sharing(collective);
      walk(numbered({2, 2, 2, 2}), [&](int64_t first) {
        if (first == where) throw std::invalid_argument("out of luck");
      });
    });
    const int64_t failed = where / 2 % 3;
    for (int64_t rank = 0; rank < 3; ++rank) {
      const std::string& error = errors[static_cast<size_t>(rank)];
      const std::string told = "error in process " + std::to_string(failed) + ": out of luck";
      if (rank == failed) {
        EXPECT_EQ(error, "out of luck");
      } else {
        EXPECT_NE(error.find(told), std::string::npos) << error;
      }
    }
  }
}

TEST(MeasuredWalkTest, AnErrorBetweenRoundsReachesAll) {
  const auto errors = testing::on_ranks(2, [&](std::shared_ptr<Collective> collective) {
    const SharedWalks sharing(collective);
    const BatchList data(numbered({1, 1, 1, 1}));
    for_each_measured(
        "walk", data,
        [&](int64_t done, int64_t) {
          if (collective->rank() == 1 && done == 3) throw std::runtime_error("interrupted");
        },
        [](const Batch&, int64_t) { return Measured(); }, [](const Batch&, const Measured&) {});
  });
  EXPECT_NE(errors[0].find("error in process 1: interrupted"), std::string::npos) << errors[0];
  EXPECT_EQ(errors[1], "interrupted");
}

TEST(MeasuredWalkTest, ALostProcessIsAnError) {
  const auto errors = testing::on_ranks(3, [&](std::shared_ptr<Collective> collective) {
    if (collective->rank() == 1) throw std::runtime_error("killed");
    const SharedWalks sharing(collective);
    walk(numbered({2, 2, 2}));
  });
  EXPECT_EQ(errors[0], "a process is gone");
  EXPECT_EQ(errors[2], "a process is gone");
}

TEST(MeasuredWalkTest, AJournalGoesOnWhereAWalkBrokeOff) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "walk.journal";
  const std::vector<Batch> batches = numbered({2, 3, 1, 4, 2});
  const auto journaled = [&](const std::function<void(int64_t)>& before) {
    const JournaledWalks keeping(std::make_shared<WalkJournal>(path, "job"));
    const Walked first = walk(batches, before);
    Walked both = walk(batches, before);
    both.measured.insert(both.measured.begin(), first.measured.begin(), first.measured.end());
    return both;
  };
  EXPECT_THROW(journaled([](int64_t first) {
                 if (first == 6) throw std::runtime_error("killed");
               }),
               std::runtime_error);
  const Walked rest = journaled({});
  EXPECT_EQ(rest.taken, (std::vector<int64_t>{0, 2, 5, 6, 10}));
  EXPECT_EQ(rest.measured, (std::vector<int64_t>{6, 10, 0, 2, 5, 6, 10}));
  EXPECT_EQ(journaled({}).measured, std::vector<int64_t>());
}

TEST(MeasuredWalkTest, AJournalOfOneProcessServesSeveral) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "walk.journal";
  const std::vector<Batch> batches = numbered({2, 3, 1, 4, 2});
  {
    const JournaledWalks keeping(std::make_shared<WalkJournal>(path, "job"));
    EXPECT_THROW(walk(batches,
                      [](int64_t first) {
                        if (first == 6) throw std::runtime_error("killed");
                      }),
                 std::runtime_error);
  }
  std::atomic<int64_t> measured = 0;
  const auto errors = testing::on_ranks(2, [&](std::shared_ptr<Collective> collective) {
    const SharedWalks sharing(collective);
    std::unique_ptr<JournaledWalks> keeping;
    if (collective->rank() == 0) {
      keeping = std::make_unique<JournaledWalks>(std::make_shared<WalkJournal>(path, "job"));
    }
    const Walked found = walk(batches);
    EXPECT_EQ(found.taken, (std::vector<int64_t>{0, 2, 5, 6, 10}));
    measured += static_cast<int64_t>(found.measured.size());
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
  EXPECT_EQ(measured, 2);
}

TEST(MeasuredWalkTest, AJournalKnowsItsData) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "walk.journal";
  const auto journaled = [&](const std::vector<Batch>& batches) {
    const JournaledWalks keeping(std::make_shared<WalkJournal>(path, "job"));
    walk(batches);
  };
  journaled(numbered({2, 3}));
  EXPECT_THROW(journaled(numbered({3, 2})), std::invalid_argument);
  journaled(numbered({2, 3}));
}

TEST(MeasuredWalkTest, OneSharingAtATime) {
  testing::on_ranks(1, [](std::shared_ptr<Collective> collective) {
    const SharedWalks sharing(collective);
    EXPECT_THROW(SharedWalks{collective}, std::invalid_argument);
  });
  EXPECT_THROW(SharedWalks{nullptr}, std::invalid_argument);
  EXPECT_THROW(JournaledWalks{nullptr}, std::invalid_argument);
}

}  // namespace
}  // namespace headkit
