#include "headkit/explain/record_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "support/scratch_folder.h"

namespace headkit {
namespace {

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(RecordFileTest, HoldsWholeLinesOfManyThreads) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "records.jsonl";
  RecordFile file(path);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&file, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string line = std::to_string(t) + ":" + std::to_string(i);
        file.write(line + std::string(3000, '.') + "\n" + line + "b\n");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(file.written(), 800);
  std::istringstream lines(content(path));  // the file is still open
  std::set<std::string> seen;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_TRUE(line.size() < 10 || line.size() > 3000) << line.size();
    seen.insert(line);
  }
  EXPECT_EQ(seen.size(), 800u);
}

TEST(RecordFileTest, AppendsAfterTheLastWholeLine) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "records.jsonl";
  { RecordFile(path).write("first\nsecond\n"); }
  std::ofstream(path, std::ios::app) << "cut sho";  // an interrupt
  { RecordFile(path).write("third\n"); }
  EXPECT_EQ(content(path), "first\nsecond\nthird\n");
  std::ofstream(folder / "one") << std::string(10000, 'x');
  { RecordFile(folder / "one").write("whole\n"); }
  EXPECT_EQ(content(folder / "one"), "whole\n");
}

TEST(RecordFileTest, RefusesHalfLinesAndPlacesItCannotWrite) {
  const testing::ScratchFolder folder;
  RecordFile file(folder / "records.jsonl");
  EXPECT_THROW(file.write("no newline"), std::invalid_argument);
  file.write("");
  EXPECT_EQ(file.written(), 0);
  EXPECT_EQ(content(file.path()), "");
  EXPECT_THROW(RecordFile(folder / "missing/records.jsonl"), std::runtime_error);
}

}  // namespace
}  // namespace headkit
