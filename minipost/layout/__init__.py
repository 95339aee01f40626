"""Files of weights: their format, and the layout of an adapter's directory.

    tensor_file   safetensors, and the state of a run
    lora_file     adapter_config.json and adapter_model.safetensors, as peft has them
    prefix_file   the same of a prefix
    bottleneck_file  the same of bottleneck adapters, in a layout of ours
"""
