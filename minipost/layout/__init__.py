"""Files of a model directory: weights, the tokenizer's side, and the layout of adapters.

    tensor_file       safetensors, and the state of a run
    vocabulary_file   what the files of a tokenizer say: ids, special tokens, chat template
    lora_file         adapter_config.json and adapter_model.safetensors, as peft has them
    prefix_file       the same of a prefix
    bottleneck_file   the same of bottleneck adapters, in a layout of ours
"""
