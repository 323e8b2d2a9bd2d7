#include "train.h"

#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/train/layer.h"
#include "error.h"

using sparsify::ParallelFor;
using sparsify::capi::Fail;
using sparsify::capi::Guard;

struct sparsify_train_linear {
  std::unique_ptr<sparsify::train::LinearLayer> layer;
};

namespace {

using OpenMp = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<OpenMp>& Pool() {
  static std::atomic<OpenMp> pool{nullptr};
  return pool;
}

// A team may be smaller than asked for (a nested region has one thread), so its threads take tasks in turn.
struct Team {
  void (*task)(void*, size_t);
  void* argument;
  size_t count;
  std::atomic<size_t> next;
};

void Work(void* data) {
  Team& team = *static_cast<Team*>(data);
  for (size_t i = team.next.fetch_add(1); i < team.count; i = team.next.fetch_add(1)) {
    team.task(team.argument, i);
  }
}

void RunTeam(void*, size_t count, void (*task)(void*, size_t), void* argument) {
  Team team = {task, argument, count, {0}};
  if (const OpenMp pool = Pool().load()) {
    pool(&Work, &team, static_cast<unsigned>(count), 0);
    return;
  }
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(&Work, &team);
  Work(&team);
  for (std::thread& thread : threads) thread.join();
}

ParallelFor Threads(int32_t threads) { return {&RunTeam, nullptr, threads}; }

}  // namespace

extern "C" {

void sparsify_train_use_openmp(void* gomp_parallel) { Pool().store(reinterpret_cast<OpenMp>(gomp_parallel)); }

int32_t sparsify_train_linear_create(const char* kernel, int64_t out, int64_t in, const int64_t* positions,
                                     int64_t count, int32_t threads, sparsify_train_linear** linear) {
  return Guard([&] {
    if (threads < 1) return Fail("a layer needs at least one thread");
    auto result = std::make_unique<sparsify_train_linear>();
    std::string error;
    result->layer =
        sparsify::train::MakeLinearLayer(kernel != nullptr ? kernel : std::getenv("SPARSIFY_KERNEL"), out, in,
                                         positions, count, threads, &error);
    if (result->layer == nullptr) return Fail(error);
    *linear = result.release();
    return 0;
  });
}

void sparsify_train_linear_free(sparsify_train_linear* linear) { delete linear; }

int32_t sparsify_train_linear_gather(const sparsify_train_linear* linear, const float* weight, float* values,
                                     int32_t threads) {
  return Guard([&] {
    if (threads < 1) return Fail("a layer needs at least one thread");
    linear->layer->Gather(weight, values, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_linear_forward(const sparsify_train_linear* linear, const float* x, int64_t batch,
                                      const float* values, const float* bias, float* y, int32_t threads) {
  return Guard([&] {
    if (threads < 1 || batch < 0) return Fail("a layer needs at least one thread, and no negative batch");
    linear->layer->Forward(x, batch, values, bias, y, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_linear_backward(const sparsify_train_linear* linear, const float* x, int64_t batch,
                                       const float* dy, const float* values, float* dx, float* dweight,
                                       float* dbias, int32_t threads, int32_t zeroed) {
  return Guard([&] {
    if (threads < 1 || batch < 0) return Fail("a layer needs at least one thread, and no negative batch");
    if (dbias != nullptr && dweight == nullptr) return Fail("a bias gradient comes beside a weight gradient");
    linear->layer->Backward(x, batch, dy, values, {dx, dweight, dbias, zeroed != 0}, Threads(threads));
    return 0;
  });
}

}  // extern "C"
