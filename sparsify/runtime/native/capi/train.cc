#include "train.h"

#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/train/layer.h"
#include "convert.h"
#include "error.h"

using sparsify::ParallelFor;
using sparsify::capi::Convert;
using sparsify::capi::Fail;
using sparsify::capi::Guard;

struct sparsify_train_linear {
  std::unique_ptr<sparsify::train::LinearLayer> layer;
};

struct sparsify_train_conv {
  std::unique_ptr<sparsify::train::ConvLayer> layer;
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

// Why a call is impossible, or null.
const char* Mistake(int32_t threads, int64_t batch, const float* dweight, const float* dbias) {
  if (threads < 1 || batch < 0) return "a layer needs at least one thread, and no negative batch";
  if (dbias != nullptr && dweight == nullptr) return "a bias gradient comes beside a weight gradient";
  return nullptr;
}

const char* Instructions(const char* kernel) {
  return kernel != nullptr ? kernel : std::getenv("SPARSIFY_KERNEL");
}

bool Fits(const sparsify_train_conv* conv, int64_t height, int64_t width) {
  int64_t out_height = 0, out_width = 0;
  return conv->layer->OutputSize(height, width, &out_height, &out_width);
}

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
        sparsify::train::MakeLinearLayer(Instructions(kernel), out, in, positions, count, threads, &error);
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
    if (const char* mistake = Mistake(threads, batch, nullptr, nullptr)) return Fail(mistake);
    linear->layer->Forward(x, batch, values, bias, y, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_linear_backward(const sparsify_train_linear* linear, const float* x, int64_t batch,
                                       const float* dy, const float* values, float* dx, float* dweight,
                                       float* dbias, int32_t threads, int32_t zeroed) {
  return Guard([&] {
    if (const char* mistake = Mistake(threads, batch, dweight, dbias)) return Fail(mistake);
    linear->layer->Backward(x, batch, dy, values, {dx, dweight, dbias, zeroed != 0}, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_conv_create(const char* kernel, const sparsify_conv_attributes* attributes,
                                   const int64_t* positions, int64_t count, int32_t threads,
                                   sparsify_train_conv** conv) {
  return Guard([&] {
    if (threads < 1) return Fail("a layer needs at least one thread");
    if (attributes == nullptr) return Fail("a convolution needs attributes");
    auto result = std::make_unique<sparsify_train_conv>();
    std::string error;
    result->layer = sparsify::train::MakeConvLayer(Instructions(kernel), Convert(*attributes), positions,
                                                   count, threads, &error);
    if (result->layer == nullptr) return Fail(error);
    *conv = result.release();
    return 0;
  });
}

void sparsify_train_conv_free(sparsify_train_conv* conv) { delete conv; }

int32_t sparsify_train_conv_gather(const sparsify_train_conv* conv, const float* weight, float* values,
                                   int32_t threads) {
  return Guard([&] {
    if (threads < 1) return Fail("a layer needs at least one thread");
    conv->layer->Gather(weight, values, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_conv_forward(const sparsify_train_conv* conv, const float* x, int64_t images,
                                    int64_t height, int64_t width, const float* values, const float* bias,
                                    float* y, int32_t threads) {
  return Guard([&] {
    if (const char* mistake = Mistake(threads, images, nullptr, nullptr)) return Fail(mistake);
    if (!Fits(conv, height, width)) return Fail("the images are smaller than the kernel, or too large");
    conv->layer->Forward(x, {images, height, width}, values, bias, y, Threads(threads));
    return 0;
  });
}

int32_t sparsify_train_conv_backward(const sparsify_train_conv* conv, const float* x, int64_t images,
                                     int64_t height, int64_t width, const float* dy, const float* values,
                                     float* dx, float* dweight, float* dbias, int32_t threads,
                                     int32_t zeroed) {
  return Guard([&] {
    if (const char* mistake = Mistake(threads, images, dweight, dbias)) return Fail(mistake);
    if (!Fits(conv, height, width)) return Fail("the images are smaller than the kernel, or too large");
    conv->layer->Backward(x, {images, height, width}, dy, values, {dx, dweight, dbias, zeroed != 0},
                          Threads(threads));
    return 0;
  });
}

}  // extern "C"
