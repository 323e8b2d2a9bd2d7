// What the operators for CUDAExecutionProvider promise ONNX Runtime: registration, launches, memory and
// errors.
#include "cuda_checks.h"

namespace sparsify_tests {
namespace {

void ExpectIn(const std::string& part, const std::string& text) {
  Expect(text.find(part) != std::string::npos, "'" + part + "' is not said in: '" + text + "'");
}

PackedWeight SomeWeight(const char* layout = "csr", int64_t rows = 24, int64_t columns = 40) {
  Random random(11);
  return Pack(layout, SparseWeight(&random, rows, columns, 0.3), rows, columns);
}

constexpr sparsify_conv_attributes kConv = {24, 10, {2, 2}, {1, 1}, {0, 0, 0, 0}, {1, 1}};

// One run of a linear node with so many rows of X, which must succeed; its launch is the stub's last.
void RunLinear(NodeKernel* kernel, int64_t batch, int64_t columns) {
  const OnDevice x(std::vector<float>(static_cast<size_t>(batch * columns), 1.0f));
  const OrtValue value = x.Value({batch, columns});
  const std::string problem = kernel->Run({&value, nullptr, nullptr}, kStream);
  Expect(problem.empty(), problem);
}

void ExpectLaunch(const char* kernel, unsigned grid_x, unsigned grid_y, unsigned block) {
  const cuda_stub::Launch& launch = Stub::The().Last();
  const std::string got = std::string(launch.kernel) + " " + std::to_string(launch.grid[0]) + "x" +
                          std::to_string(launch.grid[1]) + " of " + std::to_string(launch.block[0]);
  const std::string want = std::string(kernel) + " " + std::to_string(grid_x) + "x" + std::to_string(grid_y) +
                           " of " + std::to_string(block);
  Expect(got == want, "launched " + got + " instead of " + want);
  Expect(launch.stream == kStream && launch.shared_bytes == 0, "not on the stream of the run");
}

// The stub has four multiprocessors: 64 lines fill it with a warp for each.
void TestGrids() {
  const PackedWeight csr = SomeWeight("csr", 100, 40), blocks = SomeWeight("blocks-16", 100, 40);
  NodeKernel kernel(Node::Linear(csr, Place::kDevice)), wide(Node::Linear(blocks, Place::kDevice));
  RunLinear(&kernel, 1, 40);
  ExpectLaunch("gather_1_1", 25, 1, 128);
  RunLinear(&kernel, 7, 40);
  ExpectLaunch("gather_1_4", 25, 2, 128);
  RunLinear(&kernel, 9, 40);
  ExpectLaunch("tile_1_1", 1, 2, 256);
  RunLinear(&kernel, 129, 40);
  ExpectLaunch("tile_1_2", 3, 2, 256);
  RunLinear(&wide, 1, 40);
  ExpectLaunch("gather_16_1", 2, 1, 128);
  RunLinear(&wide, 15, 40);
  ExpectLaunch("tile_16_1", 1, 2, 128);
  RunLinear(&wide, 16, 40);
  ExpectLaunch("split_16_1", 1, 1, 256);
  RunLinear(&wide, 130, 40);
  ExpectLaunch("split_16_4", 5, 1, 256);
  const PackedWeight high = SomeWeight("blocks-8", 300, 40);
  NodeKernel tall(Node::Linear(high, Place::kDevice));
  RunLinear(&tall, 16, 40);
  ExpectLaunch("split_8_1", 1, 3, 256);
  RunLinear(&tall, 64, 40);
  ExpectLaunch("split_8_2", 2, 2, 256);
  const PackedWeight dense = SomeWeight("csr", 3, 2000);
  NodeKernel shared(Node::Linear(dense, Place::kDevice));
  RunLinear(&shared, 1, 2000);
  ExpectLaunch("gather_1_1", 3, 1, 128);
  Expect(Stub::The().Last().linear.warps_per_line == 4, "few long lines are not shared by a block's warps");
}

// Weights stay where ONNX Runtime has brought them; what is on the host is copied once, and freed with the
// kernel.
void TestMemory() {
  const PackedWeight packed = SomeWeight();
  const Node there = Node::Linear(packed, Place::kDevice), here = Node::Linear(packed, Place::kHost);
  const int64_t before = Stub::The().Counts().allocations;
  {
    NodeKernel kernel(there);
    Expect(Stub::The().Counts().allocations == before, "weights on the device were copied again");
    RunLinear(&kernel, 3, 40);
    const auto& weight = Stub::The().Last().linear.weight;
    Expect(weight.pointers == there.info.inputs[4].data && weight.values == there.info.inputs[6].data,
           "the kernel does not read the session's own weights");
  }
  const cuda_stub::Counts counts = Stub::The().Counts();
  {
    NodeKernel kernel(here);
    Expect(Stub::The().Counts().allocations == counts.allocations + 3, "weights on the host were not copied");
    const int64_t made = Stub::The().Counts().allocations;
    RunLinear(&kernel, 40, 40);
    Expect(Stub::The().Counts().allocations == made + 2, "a run took memory of its own beside X and Y");
  }
  const cuda_stub::Counts after = Stub::The().Counts();
  Expect(after.allocations - counts.allocations == after.frees - counts.frees,
         "memory of the device was not freed");
}

void ExpectNoKernel(const Node& node, const std::string& text) {
  NodeKernel kernel(node);
  ExpectIn(text, kernel.failure);
  ExpectIn(node.op + " node 'node'", kernel.failure);
}

void TestAttributes() {
  const PackedWeight packed = SomeWeight();
  const auto change = [&](const std::function<void(OrtKernelInfo*)>& body) {
    Node node = Node::Linear(packed, Place::kDevice);
    body(&node.info);
    return node;
  };
  ExpectNoKernel(change([](auto* info) { info->numbers.erase("in_features"); }), "'in_features' is missing");
  ExpectNoKernel(change([](auto* info) { info->numbers["in_features"] = {41}; }), "the node says 24 x 41");
  ExpectNoKernel(change([](auto* info) { info->strings["layout"] = "csc"; }), "no layout 'csc'");
  ExpectNoKernel(change([](auto* info) { info->strings["layout"] = "blocks-4"; }), "in blocks of 0 outputs");
  ExpectNoKernel(change([](auto* info) { info->strings["activation"] = "swish"; }), "unknown activation");
  ExpectNoKernel(change([](auto* info) { info->strings["activation"] = "clip"; }), "'clip_min' is missing");
  ExpectNoKernel(change([](auto* info) { info->inputs[5].constant = false; }), "must be an initializer");
  ExpectNoKernel(change([](auto* info) { info->inputs.pop_back(); }), "3 packed tensors instead of 4");
  ExpectNoKernel(change([](auto* info) { info->inputs[4].shape.dims = {7}; }),
                 "row pointers have 7 elements");
  ExpectNoKernel(change([](auto* info) { static_cast<int32_t*>(info->inputs[4].data)[1] = 99999; }),
                 "row pointers");
  const OnDevice bias(std::vector<float>(23));
  ExpectNoKernel(change([&](auto* info) { info->inputs[1] = bias.Value({23}); }), "bias has shape [23]");
  Node conv = Node::Conv(packed, kConv, Place::kDevice);
  conv.info.numbers["strides"] = {0, 1};
  ExpectNoKernel(conv, "impossible convolution");
  conv.info.numbers["strides"] = {1};
  ExpectNoKernel(conv, "a list of 2 integers");
}

void TestShapes() {
  const PackedWeight packed = SomeWeight();
  NodeKernel linear(Node::Linear(packed, Place::kDevice)), conv(Node::Conv(packed, kConv, Place::kDevice));
  const OnDevice memory(std::vector<float>(4096));
  const OrtValue narrow = memory.Value({3, 39}), x = memory.Value({3, 40}), wrong = memory.Value({2, 24});
  ExpectIn("its last dimension must be 40", linear.Run({&narrow, nullptr, nullptr}, kStream));
  ExpectIn("residual has shape [2, 24]", linear.Run({&x, nullptr, &wrong}, kStream));
  ExpectIn("bias has shape [2, 24]", linear.Run({&x, &wrong, nullptr}, kStream));
  const OrtValue channels = memory.Value({1, 9, 4, 4}), small = memory.Value({1, 10, 1, 4});
  ExpectIn("instead of [N, 10, H, W]", conv.Run({&channels, nullptr, nullptr}, kStream));
  ExpectIn("too small for the kernel", conv.Run({&small, nullptr, nullptr}, kStream));
  const size_t launches = Stub::The().Launches();
  const OrtValue none = memory.Value({0, 40}), no_image = memory.Value({0, 10, 4, 4});
  Expect(
      linear.Run({&none, nullptr, nullptr}, kStream).empty() && linear.shape == std::vector<int64_t>{0, 24},
      "no rows of X are no run");
  Expect(conv.Run({&no_image, nullptr, nullptr}, kStream).empty(), "no images are no run");
  Expect(Stub::The().Launches() == launches, "something was launched for nothing");
}

void TestDriverFailures() {
  const PackedWeight packed = SomeWeight();
  const Node here = Node::Linear(packed, Place::kHost), there = Node::Linear(packed, Place::kDevice);
  {
    NodeKernel first(there);
  }  // the device is known from here on
  const auto failing = [](const char* function, int result, const Node& node, const char* text) {
    Stub::The().Fail(function, result);
    ExpectNoKernel(node, text);
    Stub::The().Fail(function, 0);
  };
  failing("cuMemAlloc_v2", 2, here, "bytes for packed weights on Stub GPU (sm_90): CUDA_ERROR_2");
  failing("cuMemcpyHtoD_v2", 719, here,
          "packed weights cannot be copied to Stub GPU (sm_90): CUDA_ERROR_719");
  failing("cuStreamSynchronize", 719, here, "packed weights cannot be copied");
  failing("cuMemcpyDtoH_v2", 719, there, "packed weights cannot be read from Stub GPU (sm_90)");
  failing("cuModuleGetFunction", 500, there, "lacks the kernel gather_1_1: install the package again");
  failing("cuCtxPushCurrent_v2", 201, there, "the CUDA context cannot be entered");
  NodeKernel kernel(there);
  const OnDevice memory(std::vector<float>(40));
  const OrtValue x = memory.Value({1, 40});
  Stub::The().Fail("cuLaunchKernel", 701);
  const std::string problem = kernel.Run({&x, nullptr, nullptr}, kStream);
  ExpectIn("SparseLinear node 'node': the kernel cannot be launched on Stub GPU (sm_90): CUDA_ERROR_701",
           problem);
  Stub::The().Fail("cuLaunchKernel", 0);
  Expect(kernel.Run({&x, nullptr, nullptr}, kStream).empty(), "a failed launch spoils the next");
}

void TestShapeInference() {
  const OrtCustomOp* op = CudaOperator("SparseLinear");
  OrtShapeInferContext context;
  context.inputs.resize(1);
  context.inputs[0].dims = {-1, 40};
  context.inputs[0].symbols = {"batch", ""};
  context.attributes["in_features"].numbers = {40};
  context.attributes["out_features"].numbers = {24};
  Expect(Message(op->InferOutputShapeFn(op, &context)).empty(), "shapes are not inferred");
  Expect(context.output.dims == std::vector<int64_t>{-1, 24} && context.output.symbols[0] == "batch",
         "the inferred shape is wrong");
  context.inputs[0].dims = {-1, 41};
  ExpectIn("in_features is 40", Message(op->InferOutputShapeFn(op, &context)));
}

}  // namespace

void TestLaunches() {
  TestGrids();
  TestMemory();
}

// ONNX Runtime takes operators of one name for one schema: all that it compares must agree.
void TestRegistration() {
  std::map<std::string, const OrtCustomOp*> on_cpu;
  int pairs = 0;
  for (const OrtCustomOp* gpu : Operators()) {
    if (std::string(gpu->GetExecutionProviderType(gpu)) == "CPUExecutionProvider") {
      on_cpu[gpu->GetName(gpu)] = gpu;
      continue;
    }
    Expect(on_cpu.count(gpu->GetName(gpu)) == 1, "the CPU's operator of that name does not come first");
    const OrtCustomOp* cpu = on_cpu[gpu->GetName(gpu)];
    ++pairs;
    const size_t inputs = cpu->GetInputTypeCount(cpu);
    Expect(gpu->GetInputTypeCount(gpu) == inputs && gpu->version == 17, "inputs differ");
    for (size_t k = 0; k < inputs; ++k) {
      Expect(cpu->GetInputType(cpu, k) == gpu->GetInputType(gpu, k) &&
                 cpu->GetInputCharacteristic(cpu, k) == gpu->GetInputCharacteristic(gpu, k),
             "inputs differ");
      const OrtMemType memory = k + 1 == inputs ? kMemTypeCpuInput : kMemTypeDefault;
      Expect(gpu->GetInputMemoryType(gpu, k) == memory, "the header is not asked for on the host");
    }
  }
  Expect(pairs == 2, "two operators for CUDA");
  TestShapeInference();
}

void TestErrors() {
  TestAttributes();
  TestShapes();
  TestDriverFailures();
}

void TestCreationFails(const std::string& text) {
  const PackedWeight packed = SomeWeight();
  for (int again = 0; again < 2; ++again) ExpectNoKernel(Node::Linear(packed, Place::kHost), text);
}

}  // namespace sparsify_tests
