"""Small Transformers of keras_hub for classification."""

import keras

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert(hub, folder, vocabulary, layers=2):
    """A small BERT in a folder, of keras_hub's own files; returns the folder."""
    keras.utils.set_random_seed(1)
    backbone = hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=layers,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )
    for variable in backbone.weights:  # far enough from 0 for rounding to show
        if "layer_norm" not in variable.path:
            variable.assign(keras.random.normal(variable.shape, stddev=0.3))
    tokens = hub.models.BertTokenizer(vocabulary=vocabulary, lowercase=True)
    processor = hub.models.BertTextClassifierPreprocessor(tokens)
    backbone.save_to_preset(str(folder))
    processor.save_to_preset(str(folder))
    return str(folder)
