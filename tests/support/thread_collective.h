#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "headkit/distributed/collective.h"

namespace headkit::testing {

/// Threads as processes. One that leaves is lost: whoever waits for it throws.
class ThreadGroup {
 public:
  explicit ThreadGroup(int64_t size) : given_(static_cast<size_t>(size)) {}

  std::vector<std::string> gather(int64_t rank, const std::string& own) {
    std::unique_lock lock(mutex_);
    given_[static_cast<size_t>(rank)] = own;
    const int64_t round = round_;
    if (++arrived_ == size()) {
      gathered_ = given_;
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return round_ != round || lost_; });
    if (round_ == round) throw std::runtime_error("a process is gone");
    return gathered_;
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }
  int64_t size() const { return static_cast<int64_t>(given_.size()); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> given_, gathered_;
  int64_t arrived_ = 0, round_ = 0;
  bool lost_ = false;
};

class ThreadCollective final : public Collective {
 public:
  ThreadCollective(ThreadGroup& group, int64_t rank) : group_(group), rank_(rank) {}
  int64_t rank() const override { return rank_; }
  int64_t size() const override { return group_.size(); }
  std::vector<std::string> all_gather(const std::string& own) override {
    return group_.gather(rank_, own);
  }

 private:
  ThreadGroup& group_;
  int64_t rank_;
};

/// Runs `work` with the collective of each rank in a thread of its own; what each threw, empty =
/// nothing.
inline std::vector<std::string> on_ranks(
    int64_t size, const std::function<void(std::shared_ptr<Collective>)>& work) {
  ThreadGroup group(size);
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        work(std::make_shared<ThreadCollective>(group, rank));
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
        group.leave();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

}  // namespace headkit::testing
